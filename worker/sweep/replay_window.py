"""Batches that presence might forget, where it lives on another server than the queue.

A server that is killed, or a primary whose replica takes over, may have lost its last moments: events that were
applied, and whose batches were done with. So batches stay in RQ's finished registry until a later answer of the same
servers shows that they are safe; when the servers turn out to be others, they are applied once more. Where queue and
presence share a server, both forget the same, and the receivers push it again.
"""

import logging
from contextlib import suppress
from typing import Any

from redis.exceptions import WatchError
from rq import Queue
from rq.exceptions import NoSuchJobError
from rq.job import Job
from rq.results import Result

from shared.queue import KEPT_SECONDS, BatchJob

SETTLE_SECONDS = 5.0

log = logging.getLogger("worker")


def settle(queue: Queue, asked_at: float) -> None:
    """Forgets batches that were applied more than SETTLE_SECONDS before. Raises RedisError.

    asked_at: Unix seconds, when the servers that they were applied to were last asked, and answered.
    """
    registry = queue.finished_job_registry
    safe = asked_at + KEPT_SECONDS - SETTLE_SECONDS  # the registry is ordered by when a job expires
    # Where the registry changes meanwhile, the next sweep will do: another worker may just be putting these back.
    with queue.connection.pipeline() as transaction, suppress(WatchError):
        transaction.watch(registry.key)  # type: ignore[no-untyped-call]
        found: Any = transaction.zrangebyscore(registry.key, 0, safe)
        job_ids = [job_id.decode() for job_id in found]
        if not job_ids:
            return
        transaction.multi()
        transaction.zrem(registry.key, *job_ids)
        transaction.delete(*map(Job.key_for, job_ids), *map(Result.get_key, job_ids))
        transaction.execute()


def apply_again(queue: Queue) -> None:
    """Queues them all. Raises RedisError."""
    registry = queue.finished_job_registry
    job_ids = registry.get_job_ids(cleanup=False)
    for job_id in job_ids:
        with queue.connection.pipeline() as transaction:
            with suppress(NoSuchJobError):
                queue.enqueue_job(BatchJob.fetch(job_id, queue.connection, queue.serializer), pipeline=transaction)
            transaction.zrem(registry.key, job_id)
            transaction.execute()
    if job_ids:
        log.warning(
            "presence was restarted or replaced: %d batches of the last seconds are applied again", len(job_ids)
        )
