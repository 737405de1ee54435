"""A batch that has failed for good, as a worker leaves it after its last try."""

from datetime import UTC, datetime

from redis import Redis
from rq import Queue
from rq.job import JobStatus
from rq.results import Result

from shared.queue import BatchMeta, enqueue_alone

WRONG_TYPE = "WRONGTYPE Operation against a key holding the wrong kind of value"
EVENT = ["bad", "callbackUserOfflineCommand", 2**53 + 1, "", 0, "", "op-7", 7]


def fail(queue: Queue, redis: Redis, job_id: str = "batch-0") -> None:
    """Its event could not be applied, because the user's key is not a hash."""
    redis.set("presence:bad", "not a hash")
    job = enqueue_alone(queue, EVENT, job_id, BatchMeta(7), "why")
    queue.remove(job)
    job.retries_left, job.meta["attempts"] = 0, 6
    job.ended_at = datetime.now(UTC)
    job.set_status(JobStatus.FAILED)
    queue.failed_job_registry.add(job, ttl=-1)
    job.save()
    Result.create_failure(job, -1, exc_string=f"Traceback\n\nworker.store.Poison: {WRONG_TYPE}\n")
