"""What is asked of the queue; a Redis in Python is enough."""

from collections.abc import Iterator

import pytest
from fakeredis import FakeRedis
from rq import Queue

from shared.queue import BatchMeta, enqueue_alone, enqueue_encoded, open_queue, waiting_since
from shared.settings import Settings

EVENT = b'["u","callbackUserOfflineCommand",1,"",0,"","op",99]'


@pytest.fixture
def queue() -> Iterator[Queue]:
    with FakeRedis() as client:
        yield open_queue(client, Settings())


def test_every_batch_that_waits_says_since_when(queue: Queue) -> None:
    assert waiting_since(queue, 10) == []
    started = enqueue_encoded(queue, [EVENT], 50)
    enqueue_encoded(queue, [EVENT, EVENT], 70)
    enqueue_alone(queue, ["no event"], "alone", BatchMeta(60), "why")
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


def test_a_receiver_whose_clock_is_ahead_makes_no_batch_younger(queue: Queue) -> None:
    enqueue_encoded(queue, [EVENT], 50_000, 8000)
    enqueue_encoded(queue, [EVENT], 50_000, -8000)  # its leases are by the same clock
    assert sorted(waiting_since(queue, 10) or ()) == [42_000, 50_000]


def test_what_a_job_says_of_its_batch_comes_back_as_it_went() -> None:
    for meta in (BatchMeta(), BatchMeta(50_000, 3, -7, 2)):
        assert BatchMeta.decode(meta.encode()) == meta
    assert BatchMeta.parse(b'{"since":5}') == BatchMeta(5)
    for text in (None, b"", b"\x80\x04", b"7", b'{"since":"x"}'):
        assert BatchMeta.parse(text) == BatchMeta()
