"""Events that were pushed to Redis and might still be lost there.

With `appendfsync everysec` a server that is killed forgets its last second or two, and a promoted replica lacks what
did not reach it. So pushed events stay in the journal for SETTLE_SECONDS, until a later answer of the same run of the
server shows that it still lives. If another run answers, they are pushed again. Applying an event twice is harmless.

Behind Sentinels an answer alone proves nothing: a primary that was frozen takes writes for seconds after another was
promoted. So the Sentinels are asked as well. If none of them can be asked, there is another proof: the same run is
still a primary UNCONFIRMED_SECONDS later. Sentinels that could reach it would have made it a replica by then.
"""

import logging
import time
from collections import deque
from collections.abc import Callable

from redis import Redis

from receiver.journal.journal import Journal
from receiver.journal.segment import Batch
from shared.redis.client import find_primary

SETTLE_SECONDS = 5.0
UNCONFIRMED_SECONDS = 30.0
#: The pause between two settlings: this long, or this many times as long as the last one took, if that is longer.
#: Sentinels that hang must not hold up pushes.
PAUSE_SECONDS = 1.0
PAUSE_FACTOR = 10

log = logging.getLogger("receiver.relay")


class ReplayWindow:
    """For the relay's thread. client: where events are pushed. run_id: returns the run id of that server."""

    def __init__(self, journal: Journal, client: Redis, run_id: Callable[[], str]) -> None:
        self._journal = journal
        self._client = client
        self._current_run_id = run_id
        #: The run of the server that has the events in the window.
        self._run_id = ""
        self._batches: deque[tuple[float, Batch]] = deque()
        self._next = 0.0
        #: Why events stay for longer than usual, or "".
        self.reason = ""

    def add(self, batch: Batch) -> None:
        """Notes what was just pushed."""
        self._batches.append((time.monotonic(), batch))

    def settle(self) -> None:
        """Forgets events that are safe, or pushes again those that may be lost.

        To be called right after an answer of the server. Raises RedisError, OSError.
        """
        if self._is_another_run():
            return
        now = time.monotonic()
        if now < self._next or not self._batches:
            return
        safe_seconds = self._prove()
        if self._is_another_run():
            return
        while self._batches and self._batches[0][0] <= now - safe_seconds:
            self._journal.settled(self._batches.popleft()[1])
        self._bound(now)
        done = time.monotonic()
        self._next = done + max(PAUSE_SECONDS, PAUSE_FACTOR * (done - now))

    def _is_another_run(self) -> bool:
        run_id = self._current_run_id()
        if run_id == self._run_id:
            return False
        if self._run_id:
            self._batches.clear()
            if again := self._journal.push_again():
                log.warning("Redis was restarted or replaced: %d events of the last seconds are pushed again", again)
        self._run_id = run_id
        return True

    def _prove(self) -> float:
        """How long ago an event must have been pushed to be safe by now. Raises RedisError."""
        primary = find_primary(self._client)
        if primary == "same":
            self._explain("")
            return SETTLE_SECONDS
        if primary == "another":
            self._explain("the Sentinels name another primary, or none")
            return float("inf")
        if self._client.info("replication")["role"] != "master":
            self._explain("no Sentinel can be asked, and the server is no longer a primary")
            return float("inf")
        self._explain(f"no Sentinel can be asked for the primary, so events stay {UNCONFIRMED_SECONDS:.0f} s")
        return UNCONFIRMED_SECONDS

    def _explain(self, reason: str) -> None:
        if reason and reason != self.reason:
            log.warning("events that were pushed stay in the journal: %s", reason)
        elif self.reason and not reason:
            log.info("the Sentinels confirm the primary again")
        self.reason = reason

    def _bound(self, now: float) -> None:
        """Forgets the oldest events if the journal would exceed its limit: Redis has them, unless it fails."""
        forgotten = 0
        while self._batches and self._batches[0][0] <= now - SETTLE_SECONDS and self._journal.is_over_limit():
            batch = self._batches.popleft()[1]
            self._journal.settled(batch)
            forgotten += batch.lines
        if forgotten:
            log.warning(
                "the journal is at PRESENCE_JOURNAL_MAX_BYTES: %d pushed events are no longer kept (%s)",
                forgotten,
                self.reason,
            )
