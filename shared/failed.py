"""Batches that could not be applied: RQ's failed registry of the queue, and what a person can do with them."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import WatchError
from rq.exceptions import NoSuchJobError
from rq.job import Job
from rq.results import Result
from rq.worker_registration import WORKERS_BY_QUEUE_KEY

from shared.events import describe
from shared.queue import BatchJob, BatchMeta, check_type, open_queue, why_alone
from shared.redis.clock import clock_of
from shared.settings import Settings

_CHUNK = 200


@dataclass(frozen=True, slots=True)
class Failed:
    """One batch that failed for good.

    failed_at: Unix milliseconds, 0 if unknown. error: one line. attempts: how often it was tried. events: see
    `describe`.
    """

    id: str
    failed_at: int
    error: str
    attempts: int
    events: list[dict[str, Any]]


class FailedBatches:
    """All methods raise redis-py's RedisError if the server is away."""

    def __init__(self, client: Redis, settings: Settings) -> None:
        self._client = client
        self._queue = open_queue(client, settings)
        self._key = self._queue.failed_job_registry.key

    def now_ms(self) -> int:
        """Unix milliseconds by the server's clock, like all times here."""
        return clock_of(self._client).now_ms()

    def ids(self) -> list[str]:
        members: Any = self._client.zrange(self._key, 0, -1)
        return [job_id.decode() for job_id in members]

    def read(self) -> list[Failed]:
        """All of them, in the order in which they failed."""
        return sorted(self.describe(self.ids()), key=lambda failed: (failed.failed_at, failed.id))

    def retrying(self) -> list[tuple[int, Failed]]:
        """What is still being tried, the next one first: when, in Unix milliseconds, and what."""
        scheduled: Any = self._client.zrange(self._queue.scheduled_job_registry.key, 0, -1, withscores=True)
        found = self.describe([job_id.decode() for job_id, _ in scheduled])
        return [(int(score) * 1000, each) for (_, score), each in zip(scheduled, found, strict=True)]

    def outcome(self, job_id: str) -> str | None:
        """What became of a requeued batch: its error if it failed again, "" if it is done, None until then."""
        if self._client.zscore(self._key, job_id) is not None:
            return next(iter(self.describe([job_id]))).error
        return None if self._client.exists(Job.key_for(job_id)) else ""

    def has_workers(self) -> bool:
        return bool(self._client.scard(WORKERS_BY_QUEUE_KEY % self._queue.name))

    def describe(self, ids: Iterable[str]) -> Iterator[Failed]:
        """What is known of jobs, in their order, whether they have failed or not."""
        remaining = iter(ids)
        while chunk := list(islice(remaining, _CHUNK)):
            jobs = BatchJob.fetch_many(chunk, self._client, self._queue.serializer)
            for job_id, job in zip(chunk, jobs, strict=True):
                yield _describe(job) if job else Failed(job_id, 0, "its job is gone: drop it", 0, [])

    def requeue(self, job_id: str) -> bool:
        """Puts it back on the queue, in one step: if this program is killed, the batch is in one of the two places.

        False if it is not among the failed, or its job is gone. Its retries are used up, so it is tried once.
        """

        def step(transaction: Pipeline) -> None:
            job = BatchJob.fetch(job_id, self._client, self._queue.serializer)
            check_type(self._queue)
            transaction.multi()
            job.started_at = job.ended_at = None
            self._queue.enqueue_job(job, pipeline=transaction)

        return self._take_out(job_id, step)

    def drop(self, job_id: str) -> bool:
        """Discards it for good. False if it is not among the failed."""

        def step(transaction: Pipeline) -> None:
            transaction.multi()
            transaction.delete(Job.key_for(job_id), Result.get_key(job_id))  # type: ignore[no-untyped-call]

        return self._take_out(job_id, step)

    def _take_out(self, job_id: str, step: Any) -> bool:
        """Runs `step` and takes the job out of the registry in one transaction, if the job is still in there."""
        while True:
            with self._client.pipeline() as transaction:
                try:
                    transaction.watch(self._key)  # type: ignore[no-untyped-call]
                    if self._client.zscore(self._key, job_id) is None:
                        return False
                    step(transaction)
                    transaction.zrem(self._key, job_id)
                    transaction.execute()
                except WatchError:  # the registry has changed meanwhile
                    continue
                except NoSuchJobError:
                    return False
                return True


def _describe(job: Job) -> Failed:
    result = job.latest_result()
    failed_at = result.created_at if result else job.ended_at
    try:
        events = [describe(event) for event in job.args[0]]
        meta = BatchMeta.decode(job.meta)
    except Exception:  # a pickle, or another program's job: RQ passes on whatever its deserializer raises
        events, meta = [], BatchMeta()
    return Failed(
        job.id,
        int(failed_at.timestamp() * 1000) if failed_at else 0,
        _one_line(result.exc_string if result else why_alone(job)),
        meta.attempts or 1,
        events,
    )


def _one_line(trace: str | None) -> str:
    """The last line of a stack trace."""
    lines = (trace or "").strip().splitlines()
    line = lines[-1] if lines else "no error was kept"
    return re.sub(r"^worker\.store\.[\w.]*Poison: ", "", line)
