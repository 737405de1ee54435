"""Which batches are kept in case presence forgets them. A Redis in Python is enough."""

from collections.abc import Iterator
from typing import Any

import pytest
from fakeredis import FakeRedis
from redis.client import Pipeline
from rq import Queue
from rq.job import JobStatus

from shared.queue import KEPT_SECONDS, enqueue_encoded, open_queue
from shared.settings import Settings
from worker.sweep.replay_window import SETTLE_SECONDS, ReplayWindow

EVENT = b'["u","callbackUserOfflineCommand",1,"",0,"","op",99]'


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def queue() -> Iterator[Queue]:
    with FakeRedis() as client:
        yield open_queue(client, Settings())


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def window(queue: Queue, clock: Clock) -> ReplayWindow:
    return ReplayWindow(queue, clock)


def begin(queue: Queue) -> str:
    job = enqueue_encoded(queue, [EVENT], 50)
    queue.connection.lrem(queue.key, 1, job.id)
    queue.connection.zadd(queue.started_job_registry.key, {f"{job.id}:execution": 1})
    return job.id


def finish(queue: Queue, job_id: str, skew_seconds: int = 0) -> None:
    """Finishes a job as RQ does, by a worker whose clock is ahead by that much."""
    job = queue.fetch_job(job_id)
    assert job
    queue.connection.zrem(queue.started_job_registry.key, f"{job_id}:execution")
    job.set_status(JobStatus.FINISHED)
    queue.finished_job_registry.add(job, KEPT_SECONDS + skew_seconds)
    queue.connection.expire(job.key, KEPT_SECONDS)


def applied(queue: Queue, skew_seconds: int = 0) -> str:
    job_id = begin(queue)
    finish(queue, job_id, skew_seconds)
    return job_id


def kept(queue: Queue) -> list[str]:
    return queue.finished_job_registry.get_job_ids(cleanup=False)


@pytest.mark.parametrize("skew_seconds", [0, 8, -8, 60, -60, 7200, -7200])
def test_batches_are_forgotten_when_they_are_safe_and_not_before_whatever_the_workers_clocks(
    queue: Queue, window: ReplayWindow, clock: Clock, skew_seconds: int
) -> None:
    safe = applied(queue, skew_seconds)
    window.settle(window.look())
    clock.seconds += SETTLE_SECONDS - 1
    fresh = applied(queue, skew_seconds)
    window.settle(window.look())
    assert set(kept(queue)) == {safe, fresh}
    clock.seconds += 1
    window.settle(window.look())
    assert kept(queue) == [fresh]
    assert queue.fetch_job(safe) is None and queue.fetch_job(fresh)


def test_batches_are_kept_for_as_long_as_presence_is_away(queue: Queue, window: ReplayWindow) -> None:
    job_id = applied(queue)
    window.look()
    assert queue.connection.ttl(f"rq:job:{job_id}") == -1
    queue.finished_job_registry.cleanup()
    assert kept(queue) == [job_id]


def test_a_sweeper_that_had_lost_the_turn_measures_anew(queue: Queue, window: ReplayWindow, clock: Clock) -> None:
    job_id = applied(queue)
    window.look()
    clock.seconds += 2 * SETTLE_SECONDS
    window.forget()
    window.settle(window.look())
    assert kept(queue) == [job_id]


def test_none_is_forgotten_that_is_put_back_at_that_moment(
    queue: Queue, window: ReplayWindow, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id, read = applied(queue), Pipeline.zrange
    window.look()
    clock.seconds += 2 * SETTLE_SECONDS

    def meanwhile(*arguments: Any) -> Any:
        found = read(*arguments)
        ReplayWindow(queue, clock).apply_again()
        return found

    asked_at = window.look()
    monkeypatch.setattr(Pipeline, "zrange", meanwhile)
    window.settle(asked_at)
    assert queue.get_job_ids() == [job_id]
    assert queue.fetch_job(job_id) is not None


def test_all_can_be_applied_again(queue: Queue, window: ReplayWindow) -> None:
    jobs = {applied(queue), applied(queue)}
    gone = applied(queue)
    queue.connection.delete(f"rq:job:{gone}")
    window.look()
    window.apply_again()
    assert set(queue.get_job_ids()) == jobs
    assert kept(queue) == []
    assert {queue.fetch_job(job_id).get_status() for job_id in jobs} == {JobStatus.QUEUED}  # type: ignore[union-attr]


def test_a_batch_that_was_being_applied_when_presence_was_replaced_is_applied_again_as_well(
    queue: Queue, window: ReplayWindow
) -> None:
    before = begin(queue)
    window.look()
    window.apply_again()
    after = begin(queue)
    for job_id in (before, after):
        finish(queue, job_id)
    window.look()
    assert queue.get_job_ids() == [before]
    assert kept(queue) == [after]
    queue.connection.lrem(queue.key, 1, before)
    finish(queue, before)
    window.look()
    assert set(kept(queue)) == {before, after}, "once is enough"
