"""The RQ queue between receivers and workers: its name, its serializer, its jobs."""

from collections.abc import Sequence
from typing import Any

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import ResponseError
from rq import Queue, Retry
from rq.executions import Execution, ExecutionRegistry
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer

from shared.settings import Settings

#: By name, since the receiver must not import the worker.
APPLY = "worker.jobs.apply_batch"

JOB_TIMEOUT_SECONDS = 120
#: Batches that presence might forget (worker/sweep/replay_window.py) are kept so long at the most.
KEPT_SECONDS = 600
#: A batch fails only with its worker; so often may the workers under one batch be killed.
BATCH_RETRIES = 1000
#: An event that cannot be applied alone is tried again after these pauses, in seconds.
EVENT_RETRY_SECONDS = (2, 10, 30, 60)


class _PresentExecutions(ExecutionRegistry):
    """RQ 3.0.0 deletes a finished job by fetching each of its executions, and raises `ValueError:
    Execution ... not found in Redis` for one whose hash has expired, as it has when its worker was killed.
    The finished job then counts as failed, for ever. So: only executions that are still there.
    `tests/integration/test_rq.py` tells when this is no longer needed.
    """

    def get_executions(self, start: int = 0, end: int = -1) -> list[Execution]:
        executions = []
        for execution_id in self.get_execution_ids(start, end):
            try:
                executions.append(Execution.fetch(execution_id, self.job_id, self.connection))
            except ValueError:
                continue
        return executions


class BatchJob(Job):
    """RQ's job, which can also be finished after a worker died under it."""

    #: Nothing is kept of a batch that was applied, but where presence might forget it.
    kept_seconds = 0

    def get_result_ttl(self, default_ttl: int) -> int:
        return self.kept_seconds

    @property
    def execution_registry(self) -> ExecutionRegistry:
        return _PresentExecutions(self.id, connection=self.connection)

    def set_status(self, status: JobStatus, pipeline: Pipeline | None = None) -> None:
        """RQ 3.0.0 says `scheduled` in Redis before the transaction that schedules the job. A worker that dies
        between the two leaves a job that is in no list and that no cleanup touches. The transaction writes the
        status as well, so that without one there is nothing to write.
        """
        if pipeline is None:
            self._status = status
        else:
            super().set_status(status, pipeline)


def open_queue(connection: Redis, settings: Settings) -> Queue:
    """The queue, JSON only: reading a pickle from Redis would run whatever code it names."""
    return Queue(
        settings.keys.queue,
        connection=connection,
        serializer=JSONSerializer,
        job_class=BatchJob,
        default_timeout=JOB_TIMEOUT_SECONDS,
    )


def check_type(queue: Queue) -> None:
    """Raises ResponseError where something else than a list has the queue's name.

    To be called before a job is moved onto the queue: a transaction of Redis of which one command fails has
    done the others, and so has taken the job out of where it was.
    """
    kind = queue.connection.type(queue.key)
    if kind not in (b"list", b"none"):
        raise ResponseError(f"the key {queue.key} is no list; rename it, batches go there")


def enqueue_encoded(queue: Queue, events: Sequence[bytes], since_ms: int) -> Job:
    """Puts one batch of events, each as `events.encode` wrote it, onto the queue in one transaction.

    They are not decoded: the job's data is the JSON around them. since_ms: when the oldest was received.
    """
    job = _create(queue, f"{len(events)} events", Retry(max=BATCH_RETRIES), len(events), since_ms)
    job.data = b'["%s",null,[[%s]],{}]' % (APPLY.encode(), b",".join(events))
    try:
        return _enqueue(queue, job)
    except ResponseError:
        # A queue of a wrong type, say, refuses the id and not the job: try after try would pile up.
        queue.connection.delete(job.key)
        raise


def waiting_since(queue: Queue, most: int) -> list[int] | None:
    """When the oldest event of each batch that is not applied yet was received, Unix milliseconds, 0 where a batch does
    not say. None for more than `most` batches. Failed ones do not count: they wait for a person.
    """
    connection = queue.connection
    with connection.pipeline() as transaction:  # all at once, or a batch could slip by from one list to another
        transaction.lrange(queue.key, 0, most)
        transaction.lrange(queue.intermediate_queue_key, 0, most)
        transaction.zrange(queue.started_job_registry.key, 0, most)
        transaction.zrange(queue.scheduled_job_registry.key, 0, most)
        job_ids = {name.decode().partition(":")[0] for names in transaction.execute() for name in names}
    if len(job_ids) > most:
        return None
    with connection.pipeline(transaction=False) as pipeline:
        for job_id in job_ids:
            pipeline.hmget(Job.key_for(job_id), "status", "meta")
        found = pipeline.execute()
    return [
        queue.serializer.loads(meta).get("since", 0) if meta else 0
        for status, meta in found
        if status is not None  # else it was done meanwhile
    ]


def enqueue_alone(queue: Queue, event: Any, job_id: str, since_ms: int, why: str) -> Job:
    """Puts one event that failed in its batch onto the queue, to be tried alone with growing pauses.

    job_id: the same for the same event of the same batch, so that a batch run twice makes one job. Its meta counts the
    attempts, of which the batch was the first.
    """
    pauses = EVENT_RETRY_SECONDS
    job = _create(queue, f"1 event alone: {why}", Retry(max=len(pauses), interval=pauses), 1, since_ms, job_id)
    job.meta["attempts"] = 1
    job.args = ([event],)
    return _enqueue(queue, job)


def _create(queue: Queue, description: str, retry: Retry, events: int, since_ms: int, job_id: str | None = None) -> Job:
    """A job of which nothing is kept when it is done, and everything, for ever, when it failed."""
    return queue.create_job(
        APPLY,
        description=description,
        failure_ttl=-1,
        retry=retry,
        job_id=job_id,
        meta={"since": since_ms, "events": events},
    )


def _enqueue(queue: Queue, job: Job) -> Job:
    with queue.connection.pipeline() as transaction:
        queue.enqueue_job(job, pipeline=transaction)
        transaction.execute()
    return job
