"""What we rely on in RQ, and what we work around."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from redis import Redis
from rq import Queue, Retry, SimpleWorker
from rq.job import Job
from rq.serializers import JSONSerializer
from rq.webhook import Webhook
from support import wait_until

from shared.events import Event, encode
from shared.failed import FailedBatches
from shared.queue import APPLY, BatchJob, BatchMeta, enqueue_alone, enqueue_encoded, open_queue
from shared.redis.client import connect
from shared.settings import Settings
from worker import jobs
from worker.store.store import Outcome, Poison, Store


@contextmanager
def presence_at(client: Redis) -> Iterator[None]:
    """Has jobs that run in this process write presence there."""
    with (
        patch.object(jobs, "_store", lambda: Store(client, Settings())),
        patch.object(jobs, "_settings", Settings),
    ):
        yield


def abandon(redis: Redis, job_class: type[Job]) -> tuple[Queue, SimpleWorker]:
    """A queue with one job, begun by a worker that is gone; its execution has expired."""
    queue = Queue("q", connection=redis, serializer=JSONSerializer, job_class=job_class)
    job = queue.enqueue(APPLY, [], result_ttl=0, retry=Retry(max=3))
    worker = SimpleWorker([queue], connection=redis, serializer=JSONSerializer, job_class=job_class)
    taken = queue.dequeue_any([queue], None, connection=redis, job_class=job_class, serializer=JSONSerializer)
    assert taken is not None
    execution = worker.prepare_execution(job)
    worker.prepare_job_execution(job, remove_from_intermediate_queue=True)
    redis.delete(execution.key)
    redis.zadd(queue.started_job_registry.key, {execution.composite_key: 1})
    queue.started_job_registry.cleanup()
    assert queue.job_ids == [job.id]
    return queue, SimpleWorker([queue], connection=redis, serializer=JSONSerializer, job_class=job_class)


def test_an_abandoned_job_can_be_finished(redis: Redis) -> None:
    queue, worker = abandon(redis, BatchJob)
    with presence_at(redis):
        worker.work(burst=True, logging_level="CRITICAL")
    assert queue.job_ids == []
    assert not redis.keys("rq:job:*")


def test_rq_still_needs_the_workaround(redis: Redis) -> None:
    """If this fails, RQ has been fixed: remove `BatchJob.execution_registry` from shared/queue.py."""
    _, worker = abandon(redis, Job)
    with presence_at(redis):
        worker.work(burst=True, logging_level="CRITICAL", max_jobs=1)
    assert redis.keys("rq:job:*")


EVENT_JSON = b'["%s","callbackUserOfflineCommand",1,"",0,"","op",7]'


@pytest.fixture
def queue(redis: Redis) -> Queue:
    return open_queue(redis, Settings())


def run(queue: Queue, redis: Redis, presence: Redis | None = None) -> None:
    worker = SimpleWorker([queue], connection=redis, serializer=JSONSerializer, job_class=BatchJob)
    with presence_at(presence or redis):
        worker.work(burst=True, logging_level="CRITICAL")


def test_a_batch_is_applied_and_its_poison_goes_on_alone(queue: Queue, redis: Redis) -> None:
    redis.set("presence:bad", "not a hash")
    enqueue_encoded(queue, [EVENT_JSON % user for user in (b"a", b"bad", b"b")] + [b'{"no":"event"}', b"7"], 0)
    run(queue, redis)
    assert redis.hget("presence:a", "status") == redis.hget("presence:b", "status") == b"offline"
    scheduled = queue.scheduled_job_registry.get_job_ids()
    assert len(scheduled) == 3
    errors = sorted(BatchJob.fetch(job_id, redis, JSONSerializer).description or "" for job_id in scheduled)
    assert "WRONGTYPE" in errors[0]
    assert all("this is not an event" in error for error in errors[1:])


def test_an_event_alone_ends_among_the_failed_with_its_error(queue: Queue, redis: Redis) -> None:
    enqueue_alone(queue, {"no": "event"}, "batch-0", BatchMeta(), "why")
    for left in (4, 3, 2, 1, 0):
        run(queue, redis)
        job = BatchJob.fetch("batch-0", redis, JSONSerializer)
        if left:
            assert job.get_status() == "scheduled"
            queue.scheduled_job_registry.remove(job)
            queue.enqueue_job(job)
    assert queue.failed_job_registry.get_job_ids() == ["batch-0"]
    assert "this is not an event: user_id: Field required" in (job.latest_result().exc_string or "")  # type: ignore[union-attr]
    assert job.meta["attempts"] == 6
    assert redis.hget("presence-stats", "failed") == b"1"


def test_a_batch_of_one_event_that_cannot_be_applied_is_not_tried_a_thousand_times(queue: Queue, redis: Redis) -> None:
    redis.set("presence:bad", "not a hash")
    enqueue_encoded(queue, [EVENT_JSON % b"bad"], 7)
    run(queue, redis)
    (job_id,) = queue.scheduled_job_registry.get_job_ids()
    job = BatchJob.fetch(job_id, redis, JSONSerializer)
    assert (job.retries_left, job.meta["attempts"]) == (3, 2)  # in its batch, and alone


def test_a_batch_run_twice_makes_one_job_of_its_poison(queue: Queue, redis: Redis) -> None:
    for _ in range(2):
        enqueue_alone(queue, {"no": "event"}, "batch-0", BatchMeta(), "why")
    run(queue, redis)
    assert queue.scheduled_job_registry.get_job_ids() == ["batch-0"]


def test_a_pickle_is_not_read(redis: Redis, queue: Queue) -> None:
    Queue("presence", connection=redis).enqueue("os.getpid")
    run(queue, redis)
    assert queue.failed_job_registry.count == 1


def forge(queue: Queue, call: Sequence[Any], **fields: str) -> Job:
    """A batch on the queue that names this call instead of ours: a function, an instance, arguments. Tried once."""
    job = enqueue_encoded(queue, [EVENT_JSON % b"a"], 0)
    queue.connection.hset(job.key, mapping={"data": json.dumps([*call, {}]), "retries_left": 0, **fields})
    return job


@pytest.mark.parametrize("named", [("os.mkdir", None), ("join", "-"), (APPLY, "-"), (None, None)])
def test_a_job_can_call_nothing_else(
    queue: Queue, redis: Redis, tmp_path: Path, named: tuple[str | None, str | None]
) -> None:
    """Whoever can write to the queue must not be able to run programs on the workers' machines."""
    job = forge(queue, [*named, [str(tmp_path / "made")]])
    run(queue, redis)
    assert not (tmp_path / "made").exists()
    assert queue.failed_job_registry.get_job_ids() == [job.id]
    assert f"may only name {APPLY}" in (BatchJob.fetch(job.id, redis, JSONSerializer).latest_result().exc_string or "")  # type: ignore[union-attr]


@pytest.mark.parametrize("events", [[], 7])
def test_a_job_has_no_callbacks_and_no_webhooks(queue: Queue, redis: Redis, events: Any) -> None:
    calls: list[Any] = []
    names = dict.fromkeys(("success_callback_name", "failure_callback_name", "stopped_callback_name"), "os.putenv")
    webhooks = [Webhook("http://127.0.0.1:9/", status).to_dict() for status in ("finished", "failed")]
    forge(queue, [APPLY, None, [events]], webhooks=json.dumps(webhooks), **names)
    with patch("os.putenv", lambda *given: calls.append(given)), patch.object(Webhook, "send", calls.append):
        run(queue, redis)
    assert queue.failed_job_registry.count == (events == 7)
    assert not calls


def test_what_the_receiver_puts_on_the_queue_is_what_the_worker_reads(queue: Queue, redis: Redis) -> None:
    from shared.events import EVENT

    event = EVENT.validate_json(EVENT_JSON % "ü\\u2028\\\"'\\n".encode())
    job = enqueue_encoded(queue, [encode(event)], event.received_at)
    again = BatchJob.fetch(job.id, redis, JSONSerializer)
    assert EVENT.validate_python(again.args[0][0]) == event
    wait_until(lambda: again.func_name == "worker.jobs.apply_batch")


def test_a_batch_of_which_all_fail_with_one_error_stays_together(
    queue: Queue, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Store, events: Sequence[Event], *__: Any) -> list[Outcome | Poison]:
        return [Poison("something is wrong with all of them")] * len(events)

    monkeypatch.setattr(Store, "apply", fail)
    job = enqueue_encoded(queue, [EVENT_JSON % user for user in (b"a", b"b", b"c")], 7)
    for tries in range(1, 6):
        run(queue, redis)
        assert not queue.job_ids, "each try but the last is followed by a pause"
        if tries < 5:
            (job_id,) = queue.scheduled_job_registry.get_job_ids()
            assert job_id == job.id
            queue.scheduled_job_registry.remove(job_id)
            queue.enqueue_job(BatchJob.fetch(job_id, redis, JSONSerializer))
    assert queue.failed_job_registry.get_job_ids() == [job.id]
    assert BatchJob.fetch(job.id, redis, JSONSerializer).meta == {"since": 7, "events": 3, "attempts": 5}
    assert redis.hget("presence-stats", "failed") == b"3"
    monkeypatch.undo()
    FailedBatches(redis, Settings()).requeue(job.id)
    run(queue, redis)
    assert redis.hget("presence:c", "status") == b"offline"


@pytest.mark.parametrize("users", [(b"a",), (b"a", b"b")])
def test_no_try_follows_a_mistake_of_ours_without_a_pause(
    queue: Queue, redis: Redis, monkeypatch: pytest.MonkeyPatch, users: tuple[bytes, ...]
) -> None:
    monkeypatch.setattr(Store, "apply", lambda *_: 1 / 0)
    enqueue_encoded(queue, [EVENT_JSON % user for user in users], 0)
    run(queue, redis)
    (job_id,) = queue.scheduled_job_registry.get_job_ids()
    assert BatchJob.fetch(job_id, redis, JSONSerializer).retry_intervals == [2, 10, 30, 60]


def test_a_forbidden_command_is_an_outage_of_ours_and_no_events_fault(queue: Queue, redis: Redis) -> None:
    for forbidden in ("-xadd", "-hset", "-fcall"):
        redis.execute_command("ACL", "SETUSER", "worker", "on", ">secret", "~*", "+@all", forbidden)
        with connect(f"redis://worker:secret@{address(redis)}/0") as forbidding:
            enqueue_encoded(queue, [EVENT_JSON % user for user in (b"a", b"b")], 0)
            with patch.object(jobs, "PATIENCE_SECONDS", 0):
                run(queue, redis, forbidding)
        (job_id,) = queue.scheduled_job_registry.get_job_ids()
        job = BatchJob.fetch(job_id, redis, JSONSerializer)
        assert (job.number_of_retries, job.meta["events"]) == (1, 2)
        queue.scheduled_job_registry.remove(job_id)
    redis.acl_deluser("worker")


def address(redis: Redis) -> str:
    options = redis.connection_pool.connection_kwargs
    return f"{options['host']}:{options['port']}"
