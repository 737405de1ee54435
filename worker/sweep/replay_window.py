"""Batches that presence might forget, if it lives on another server than the queue.

A server that is killed, or a primary whose replica takes over, may lose its last moments: events that were applied, and
whose batches were done with. So batches stay in RQ's finished registry until a later answer of the same servers shows
that they are safe. If the servers turn out to be others, the batches are applied once more. If queue and presence share
a server, both forget the same, and the receivers push it again.

One process measures how long a batch has been there, with its monotonic clock and from when it first saw the batch: the
registry's scores were written with the clocks of several machines.
"""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from redis.exceptions import WatchError
from rq import Queue
from rq.exceptions import NoSuchJobError
from rq.job import Job
from rq.results import Result

from shared.queue import BatchJob

SETTLE_SECONDS = 5.0

log = logging.getLogger("worker")


class ReplayWindow:
    """For the one sweeper that has the turn. Every method raises RedisError.

    clock: returns seconds, and never goes back.
    """

    def __init__(self, queue: Queue, clock: Callable[[], float] = time.monotonic) -> None:
        self._queue = queue
        self._key = queue.finished_job_registry.key
        self._clock = clock
        #: When each batch was first seen to be applied.
        self._seen: dict[str, float] = {}
        #: Batches that were being applied when the servers turned out to be others, perhaps still to the old ones.
        self._in_flight: set[str] = set()

    def look(self) -> float:
        """Notes which batches have been applied; returns when, on the window's clock.

        To be called before the servers are asked.
        """
        job_ids = self._applied()
        seen_at = self._clock()
        before, self._seen = self._seen, {job_id: self._seen.get(job_id, seen_at) for job_id in job_ids}
        if fresh := [job_id for job_id in job_ids if job_id not in before]:
            self._keep(fresh)
            self._apply_again([job_id for job_id in fresh if job_id in self._in_flight])
        return seen_at

    def _applied(self) -> list[str]:
        members: Any = self._queue.connection.zrange(self._key, 0, -1)
        return [member.decode() for member in members]

    def _keep(self, job_ids: list[str]) -> None:
        """RQ would forget them after KEPT_SECONDS; presence may be away for longer."""
        with self._queue.connection.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                pipeline.persist(Job.key_for(job_id))
                pipeline.zadd(self._key, {job_id: "+inf"}, xx=True)
            pipeline.execute()

    def settle(self, asked_at: float) -> None:
        """Forgets batches that were applied at least SETTLE_SECONDS before.

        asked_at: when the servers to which they were applied were asked, on the window's clock; they have answered.
        """
        safe = {job_id for job_id, seen_at in self._seen.items() if seen_at <= asked_at - SETTLE_SECONDS}
        if not safe:
            return
        # If the registry changes meanwhile, leave it to the next sweep: another worker may be putting these back.
        with self._queue.connection.pipeline() as transaction, suppress(WatchError):
            transaction.watch(self._key)  # type: ignore[no-untyped-call]
            members: Any = transaction.zrange(self._key, 0, -1)
            job_ids = [job_id for member in members if (job_id := member.decode()) in safe]
            if not job_ids:
                return
            transaction.multi()
            transaction.zrem(self._key, *job_ids)
            transaction.delete(*map(Job.key_for, job_ids), *map(Result.get_key, job_ids))
            transaction.execute()

    def apply_again(self) -> None:
        """Queues all batches again, since the servers are others now, and later those that are being applied now."""
        # In this order: a batch that is running when the first is read is in the second by then, or will be.
        self._in_flight = set(self._queue.started_job_registry.get_job_ids(cleanup=False))
        if job_ids := self._applied():
            self._apply_again(job_ids)
            log.warning(
                "presence was restarted or replaced: %d batches of the last seconds are applied again", len(job_ids)
            )

    def _apply_again(self, job_ids: Sequence[str]) -> None:
        queue = self._queue
        for job_id in job_ids:
            with queue.connection.pipeline() as transaction:
                with suppress(NoSuchJobError):
                    job = BatchJob.fetch(job_id, queue.connection, queue.serializer)
                    queue.enqueue_job(job, pipeline=transaction)
                transaction.zrem(self._key, job_id)
                transaction.execute()
            self._seen.pop(job_id, None)
            self._in_flight.discard(job_id)

    def forget(self) -> None:
        """Starts measuring afresh: another sweeper may have had the turn meanwhile."""
        self._seen.clear()
