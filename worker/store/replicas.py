"""Makes writes survive the loss of their server: they are done only when a replica has them too.

Replicas are asynchronous, and the queue forgets a batch once it is applied. Without this, the last writes before a
primary dies would be lost with it. And a primary that was frozen, and does not know yet that another was promoted,
would take batches for seconds.
"""

import logging
import time
from typing import Any

from redis.exceptions import ConnectionError

from shared.redis.backend import Backend

#: How long one batch waits for a replica, and how long batches are refused before the replica counts as gone.
CONFIRM_MS = 500
PATIENCE_SECONDS = 1.0
#: The wait after that: longer than a round trip to a replica in another town, so that a late one can count again.
GONE_MS = 20

log = logging.getLogger("worker.store")


class Replicas:
    """Executes pipelines that write.

    expected: whether there are replicas to wait for. By its URL, a single server has none.
    """

    def __init__(self, client: Backend) -> None:
        self._client = client
        self.expected = client.has_replicas
        self._missing_since: float | None = None
        self._told = False

    def execute(self, pipeline: Any) -> list[Any]:
        """The replies and errors in the order of the commands.

        Raises RedisError, also if no replica confirms; after PATIENCE_SECONDS it goes on without one.
        """
        if not self.expected:
            return list(pipeline.execute(raise_on_error=False))
        now = time.monotonic()
        patient = self._missing_since is None or now - self._missing_since < PATIENCE_SECONDS
        pipeline.execute_command("WAIT", 1, CONFIRM_MS if patient else GONE_MS)
        *replies, confirmed = pipeline.execute(raise_on_error=False)
        if isinstance(confirmed, Exception):
            raise confirmed  # UNBLOCKED: it has just become a replica itself
        if confirmed:
            if self._told:
                log.warning("a replica confirms writes to presence again")
            self._missing_since, self._told = None, False
        elif patient:
            self._missing_since = self._missing_since or now
            self._client.refresh()  # perhaps another server is the primary now
            raise ConnectionError("no replica confirms the writes")
        elif not self._told:
            log.warning("no replica confirms writes to presence: a failover now would lose the last of them")
            self._told = True
        return list(replies)
