"""Closes sessions whose leases have run out, if silence means something (worker/sweep/watermark.py)."""

import logging
from collections.abc import Callable, Sequence

from rq import Queue

from shared.queue import waiting_since
from shared.reports import Report
from worker.store.store import PIPELINE_EVENTS, Store
from worker.sweep.watermark import LeaseWatermark, look

#: If there are more batches on the queue, their age is not read.
BATCHES_MOST = 1000

log = logging.getLogger("worker.leases")


class Leases:
    """lease_ms: milliseconds until a session must be renewed."""

    def __init__(self, queue: Queue, store: Store, lease_ms: int) -> None:
        self._queue = queue
        self._store = store
        self._lease_ms = lease_ms

    def look(self, before: LeaseWatermark, now_ms: int, servers: str, reports: Sequence[Report]) -> LeaseWatermark:
        """The new watermark at `now_ms`, by the clock of the queue's server.

        reports: those just read. servers: see `LeaseWatermark`; "" if they may not be asked. Raises RedisError.
        """
        waiting = waiting_since(self._queue, BATCHES_MOST)  # after the reports, which say what is on the queue
        return look(before, now_ms, self._lease_ms, servers, reports, waiting)

    def close(self, watermark: LeaseWatermark, go_on: Callable[[], bool]) -> int:
        """Closes the sessions whose leases have run out, and returns how many.

        go_on: called after each thousand users; False stops. Raises RedisError, Unavailable.
        """
        closed = 0
        while due := self._store.due(watermark.until, PIPELINE_EVENTS):
            closed += self._store.review(list(due), watermark.until, watermark.swept_at, due)
            if len(due) < PIPELINE_EVENTS or not go_on():
                break
        if closed:
            log.info("closed %d sessions that were not renewed", closed)
        return closed
