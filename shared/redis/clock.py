"""One clock for programs on several machines: that of a Redis server to which all of them are connected.

The clocks of machines differ by seconds, and sometimes by hours. If one program compares a time that another wrote,
both use the server's clock.
"""

import time
from contextlib import suppress

from redis import Redis
from redis.exceptions import RedisError

#: A larger difference deserves a person's attention.
SKEW_MOST_MS = 2000
#: If an answer took longer, its time is too inexact.
_ANSWER_SECONDS = 0.5


class ServerClock:
    """Follows the server's clock: asks it now and then, and uses this machine's monotonic clock in between.

    Until the first answer it is this machine's clock. Several threads may read it, but only one may ask.
    """

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._asked = False
        #: The server's clock minus our monotonic one.
        self._ahead_ns = time.time_ns() - time.monotonic_ns()
        #: How far this machine's clock is ahead of the server's, in milliseconds; negative if it is behind.
        self.skew_ms = 0

    def ask(self) -> str:
        """Asks the server for its time; returns the `run_id` of the run that answered. Raises RedisError."""
        asked_at = time.monotonic_ns()
        # Not TIME: our users may run INFO, but an existing ACL may forbid every other command that tells the time.
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


def clock_of(client: Redis) -> ServerClock:
    """The server's clock, asked once; this machine's if the server does not answer or our user may not ask."""
    clock = ServerClock(client)
    with suppress(RedisError):
        clock.ask()
    return clock
