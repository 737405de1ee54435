"""The RQ queue between receivers and workers: its name, its serializer, its jobs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
#: The longest time for which batches that presence might forget are kept (worker/sweep/replay_window.py).
KEPT_SECONDS = 600
#: A batch fails only if its worker is killed; this is how often that may happen.
BATCH_RETRIES = 1000
#: In RQ's hash of a worker: how far its machine's clock is ahead of that of the queue's server, in milliseconds.
SKEW_FIELD = "clock_skew_ms"
_ALONE = "1 event alone: "
#: An event that cannot be applied alone is tried again after these pauses, in seconds.
EVENT_RETRY_SECONDS = (2, 10, 30, 60)


class _PresentExecutions(ExecutionRegistry):
    """Only the executions that are still in Redis.

    RQ 3.0.0 deletes a finished job by fetching each of its executions. If the hash of one has expired, as it has after
    its worker was killed, RQ raises `ValueError: Execution ... not found in Redis`, and the finished job counts as
    failed for ever. `tests/integration/test_rq.py` shows when this is no longer needed.
    """

    def get_executions(self, start: int = 0, end: int = -1) -> list[Execution]:
        executions = []
        for execution_id in self.get_execution_ids(start, end):
            try:
                executions.append(Execution.fetch(execution_id, self.job_id, self.connection))
            except ValueError:
                continue
        return executions


@dataclass(frozen=True, slots=True)
class BatchMeta:
    """What a job's `meta` says about its batch.

    received_at: when the receiver took the oldest event, Unix milliseconds by its own clock; 0 if unknown. events: how
    many. skew_ms: how far the receiver's clock was ahead of that of the queue's server. attempts: how often an event
    that is alone was tried, 0 for a batch.
    """

    received_at: int = 0
    events: int = 0
    skew_ms: int = 0
    attempts: int = 0

    @property
    def received_ms(self) -> int:
        """`received_at` by the clock of the queue's server."""
        return self.received_at and self.received_at - self.skew_ms

    @property
    def was_requeued(self) -> bool:
        """Whether a person put it back on the queue, after the batch and all tries of the event alone had failed."""
        return self.attempts > 1 + len(EVENT_RETRY_SECONDS)

    def encode(self) -> dict[str, int]:
        fields = {"since": self.received_at, "events": self.events, "skew": self.skew_ms, "attempts": self.attempts}
        return {name: value for name, value in fields.items() if value or name in ("since", "events")}

    @classmethod
    def decode(cls, meta: Mapping[str, Any]) -> "BatchMeta":
        """A missing or invalid number is 0: an older release wrote less, and other programs make jobs too."""
        names = ("since", "events", "skew", "attempts")
        return cls(*(value if isinstance(value := meta.get(name), int) else 0 for name in names))

    @classmethod
    def parse(cls, text: bytes | None) -> "BatchMeta":
        """The same from the field `meta` of the job's hash."""
        try:
            meta = json.loads(text or b"{}")
        except ValueError:  # a pickle
            meta = {}
        return cls.decode(meta if isinstance(meta, dict) else {})


class BatchJob(Job):
    """RQ's job, made so that it can be finished after a worker died under it, and so that it runs nothing but APPLY.

    RQ imports and calls whatever a job in Redis names. So whoever could write to the queue could run programs on the
    workers' machines.
    """

    @property
    def func(self) -> Any:
        """What the worker calls. Raises ValueError if the job names anything but APPLY."""
        if self.func_name != APPLY or self.instance is not None:
            raise ValueError(f"a job on this queue may only name {APPLY}")
        return super().func

    def restore(self, raw_data: dict[Any, Any]) -> None:
        """Takes no callbacks and no webhooks from Redis: RQ would call and fetch those as well."""
        super().restore(raw_data)
        self._success_callback_name = self._failure_callback_name = self._stopped_callback_name = None
        self.webhooks = []

    def get_result_ttl(self, default_ttl: int) -> int:
        """A batch that was applied is not kept, unless the job sets `result_ttl`."""
        return self.result_ttl or 0

    @property
    def execution_registry(self) -> ExecutionRegistry:
        return _PresentExecutions(self.id, connection=self.connection)

    def set_status(self, status: JobStatus, pipeline: Pipeline | None = None) -> None:
        """Writes the status only in a transaction.

        RQ 3.0.0 writes `scheduled` to Redis before the transaction that schedules the job. A worker that dies between
        the two leaves a job that is in no list and that no cleanup touches. The transaction writes the status as well,
        so the first write is not needed.
        """
        if pipeline is None:
            self._status = status
        else:
            super().set_status(status, pipeline)


def open_queue(connection: Redis, settings: Settings) -> Queue:
    """The queue, with JSON only: reading a pickle from Redis would run whatever code it names."""
    return Queue(
        settings.keys.queue,
        connection=connection,
        serializer=JSONSerializer,
        job_class=BatchJob,
        default_timeout=JOB_TIMEOUT_SECONDS,
    )


def check_type(queue: Queue) -> None:
    """Raises ResponseError if the key with the queue's name is not a list.

    Call this before you move a job onto the queue: if one command of a Redis transaction fails, the others are still
    carried out, so the job would be gone from its old place.
    """
    kind = queue.connection.type(queue.key)
    if kind not in (b"list", b"none"):
        raise ResponseError(f"the key {queue.key} is not a list; rename it, batches go there")


def enqueue_encoded(queue: Queue, events: Sequence[bytes], received_at: int, skew_ms: int = 0) -> Job:
    """Puts one batch of events, each as `events.encode` wrote it, onto the queue in one transaction.

    received_at, skew_ms: see BatchMeta.
    """
    job = new_batch(queue, events, received_at, skew_ms)
    try:
        return _enqueue(queue, job)
    except ResponseError:
        # A key of a wrong type refuses the id and not the job, so each try would leave a job behind.
        queue.connection.delete(job.key)
        raise


def new_batch(queue: Queue, events: Sequence[bytes], received_at: int, skew_ms: int = 0) -> Job:
    """The job of a batch, not yet on the queue."""
    meta = BatchMeta(received_at, len(events), skew_ms)
    job = _create(queue, describe_batch(events), Retry(max=BATCH_RETRIES), meta)
    job.data = data_of(events)
    return job


def describe_batch(events: Sequence[bytes]) -> str:
    return f"{len(events)} events"


def data_of(events: Sequence[bytes]) -> bytes:
    """What a batch's job calls, with the events as they are."""
    return b'["%s",null,[[%s]],{}]' % (APPLY.encode(), b",".join(events))


def waiting_since(queue: Queue, most: int) -> list[int] | None:
    """When the oldest event of each batch that is not applied yet was received; None for more than `most` batches.

    Unix milliseconds by the clock of its receiver or of the queue's server, whichever is earlier; 0 if a batch does not
    say. Failed batches do not count: they wait for a person.
    """
    connection = queue.connection
    with connection.pipeline() as transaction:  # all at once, or a batch could move between lists unseen
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
    metas = [BatchMeta.parse(meta) for status, meta in found if status is not None]  # None: it was done meanwhile
    return [min(meta.received_at, meta.received_ms) for meta in metas]


def enqueue_alone(queue: Queue, event: Any, job_id: str, batch: BatchMeta, why: str) -> Job:
    """Puts one event that failed in its batch onto the queue, to be tried alone with growing pauses.

    job_id: must be the same for the same event of the same batch, so that a batch run twice makes one job. The job's
    meta counts the attempts; the batch was the first.
    """
    pauses = EVENT_RETRY_SECONDS
    meta = replace(batch, events=1, attempts=1)
    job = _create(queue, _ALONE + why, Retry(max=len(pauses), interval=pauses), meta, job_id)
    job.args = ([event],)
    return _enqueue(queue, job)


def why_alone(job: Job) -> str:
    """Why the job has one event alone; "" for any other."""
    return (job.description or "").partition(_ALONE)[2]


def _create(queue: Queue, description: str, retry: Retry, meta: BatchMeta, job_id: str | None = None) -> Job:
    """A job that is deleted when it is done, and kept for ever when it has failed."""
    return queue.create_job(
        APPLY,
        description=description,
        failure_ttl=-1,
        retry=retry,
        job_id=job_id,
        meta=meta.encode(),
    )


def _enqueue(queue: Queue, job: Job) -> Job:
    with queue.connection.pipeline() as transaction:
        queue.enqueue_job(job, pipeline=transaction)
        transaction.execute()
    return job
