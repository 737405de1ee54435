"""One clock for programs on several machines: that of a Redis server to which all of them are connected.

Clocks of machines differ, by seconds and now and then by hours. Where a time that one program wrote is compared by
another, both go by the server's.
"""

import time

from redis import Redis

#: A difference beyond this is worth a person's attention.
SKEW_MOST_MS = 2000
#: An answer that took longer does not say well enough what time it is.
_ANSWER_SECONDS = 0.5


class ServerClock:
    """Follows the server's clock: asked now and then, in between it goes on with this machine's monotonic clock.

    Until the first answer it is this machine's clock. Not for use by several threads at once, except for reading.
    """

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._asked = False
        #: The server's clock less our monotonic one.
        self._ahead_ns = time.time_ns() - time.monotonic_ns()
        #: How far this machine's clock is ahead of the server's, in milliseconds; below 0 if it is behind.
        self.skew_ms = 0

    def ask(self) -> str:
        """Asks the server for its time; returns which run of the server answered, its `run_id`. Raises RedisError."""
        asked_at = time.monotonic_ns()
        # Not TIME: whoever connects here may run INFO, and in an existing ACL perhaps nothing else that tells the time.
        info = self._client.info("server")
        answered_at = time.monotonic_ns()
        took_ns = answered_at - asked_at
        if took_ns < _ANSWER_SECONDS * 1e9 or not self._asked:
            self._asked = True
            server_ns = int(info["server_time_usec"]) * 1000
            self._ahead_ns = server_ns - (asked_at + took_ns // 2)
            self.skew_ms = (time.time_ns() - answered_at - self._ahead_ns) // 1_000_000
        return str(info["run_id"])

    def now_ms(self) -> int:
        """Unix milliseconds by the server's clock."""
        return (time.monotonic_ns() + self._ahead_ns) // 1_000_000
