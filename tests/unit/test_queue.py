"""What is asked of the queue; a Redis made of Python will do."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from fakeredis import FakeRedis
from redis.client import Pipeline
from rq import Queue
from rq.job import JobStatus

from shared.queue import KEPT_SECONDS, enqueue_alone, enqueue_encoded, open_queue, waiting_since
from shared.settings import Settings
from worker.sweep.replay_window import SETTLE_SECONDS, apply_again, settle

EVENT = b'["u","callbackUserOfflineCommand",1,"",0,"","op",99]'


@pytest.fixture
def queue() -> Iterator[Queue]:
    with FakeRedis() as client:
        yield open_queue(client, Settings())


def test_every_batch_that_waits_says_since_when(queue: Queue) -> None:
    assert waiting_since(queue, 10) == []
    started = enqueue_encoded(queue, [EVENT], 50)
    enqueue_encoded(queue, [EVENT, EVENT], 70)
    enqueue_alone(queue, ["no event"], "alone", 60, "why")
    queue.connection.lrem(queue.key, 1, started.id)
    queue.connection.zadd(queue.started_job_registry.key, {f"{started.id}:execution": 1})
    assert sorted(waiting_since(queue, 10) or ()) == [50, 60, 70]


def test_one_that_does_not_say_might_be_of_any_age(queue: Queue) -> None:
    job = enqueue_encoded(queue, [EVENT], 50)
    queue.connection.hdel(job.key, "meta")
    assert waiting_since(queue, 10) == [0]


def test_one_that_was_done_meanwhile_does_not_count(queue: Queue) -> None:
    job = enqueue_encoded(queue, [EVENT], 50)
    queue.connection.delete(job.key)
    assert waiting_since(queue, 10) == []


def test_too_many_are_not_asked(queue: Queue) -> None:
    for _ in range(3):
        enqueue_encoded(queue, [EVENT], 50)
    assert waiting_since(queue, 2) is None
    assert waiting_since(queue, 3) == [50, 50, 50]


def applied(queue: Queue, seconds_ago: float) -> str:
    job = enqueue_encoded(queue, [EVENT], 50)
    queue.connection.lrem(queue.key, 1, job.id)
    job.set_status(JobStatus.FINISHED)
    queue.finished_job_registry.add(job, int(KEPT_SECONDS - seconds_ago))
    return job.id


def test_only_batches_that_are_safe_are_forgotten(queue: Queue) -> None:
    safe, fresh = applied(queue, SETTLE_SECONDS + 2), applied(queue, SETTLE_SECONDS - 2)
    settle(queue, time.time())
    assert queue.fetch_job(safe) is None
    assert queue.finished_job_registry.get_job_ids(cleanup=False) == [fresh]


def test_none_is_forgotten_that_is_put_back_at_that_moment(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id, read = applied(queue, SETTLE_SECONDS + 2), Pipeline.zrangebyscore

    def meanwhile(*arguments: Any) -> Any:
        found = read(*arguments)
        apply_again(queue)
        return found

    monkeypatch.setattr(Pipeline, "zrangebyscore", meanwhile)
    settle(queue, time.time())
    assert queue.get_job_ids() == [job_id]
    assert queue.fetch_job(job_id) is not None


def test_the_others_can_be_applied_again(queue: Queue) -> None:
    jobs = {applied(queue, 1), applied(queue, 2)}
    gone = applied(queue, 1)
    queue.connection.delete(f"rq:job:{gone}")
    apply_again(queue)
    assert set(queue.get_job_ids()) == jobs
    assert queue.finished_job_registry.get_job_ids(cleanup=False) == []
    assert {queue.fetch_job(job_id).get_status() for job_id in jobs} == {JobStatus.QUEUED}  # type: ignore[union-attr]
