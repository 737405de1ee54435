"""The relay's pusher, which sends RQ's commands without RQ."""

import zlib
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import OutOfMemoryError, ResponseError
from support import Server

from receiver.relay.pusher import Pusher
from shared.queue import BatchJob, BatchMeta, enqueue_encoded, open_queue
from shared.redis.client import connect
from shared.settings import Settings

EVENT = b'["\xc3\xbc%d","callbackUserOfflineCommand",1,"",0,"","op",7]'


def written(redis: Redis, job_id: str) -> dict[bytes, Any]:
    """The job's hash; of its times only the form, and its data decompressed."""
    fields = redis.hgetall(f"rq:job:{job_id}")
    for name in (b"created_at", b"enqueued_at"):
        assert fields.pop(name)[-5:-1].isdigit()
    return {**fields, b"data": zlib.decompress(fields[b"data"])}


@pytest.mark.parametrize(("number", "received_at", "skew_ms"), [(1, 7, 0), (2, 1732345678901, -12), (4000, 99, 5000)])
def test_it_writes_what_rq_writes(redis: Redis, number: int, received_at: int, skew_ms: int) -> None:
    queue = open_queue(redis, Settings())
    events = [EVENT % n for n in range(number)]
    pusher = Pusher(queue)
    by_rq = enqueue_encoded(queue, events, received_at, skew_ms)
    redis.delete("rq:queues")
    first, second = (pusher.push(events, received_at, skew_ms) for _ in range(2))
    assert written(redis, by_rq.id) == written(redis, first) == written(redis, second)
    assert queue.job_ids == [by_rq.id, first, second]
    assert redis.smembers("rq:queues") == {b"rq:queue:presence"}
    assert {redis.ttl(f"rq:job:{each}") for each in queue.job_ids} == {-1}
    job = BatchJob.fetch(second, redis, queue.serializer)
    assert (job.get_status(), job.args[0][0][0]) == ("queued", "ü0")
    assert BatchMeta.decode(job.meta) == BatchMeta(received_at, number, skew_ms)


def test_a_push_that_is_refused_leaves_no_job(redis: Redis) -> None:
    queue = open_queue(redis, Settings())
    pusher = Pusher(queue)
    pusher.push([EVENT % 1], 7)
    redis.delete(queue.key)
    redis.set(queue.key, "not a list")
    before = redis.keys("rq:job:*")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        pusher.push([EVENT % 2], 7)
    assert redis.keys("rq:job:*") == before
    redis.delete(queue.key)
    assert queue.job_ids == []
    assert [pusher.push([EVENT % 3], 7)] == queue.job_ids


def test_a_server_that_is_full_says_so_and_gets_the_batch_later(server: Server) -> None:
    client = connect(server.url)
    pusher = Pusher(open_queue(client, Settings()))
    pusher.push([EVENT % 1], 7)
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(OutOfMemoryError):
            pusher.push([EVENT % 2], 7)
    finally:
        client.config_set("maxmemory", 0)
    pusher.push([EVENT % 3], 7)
    assert client.llen("rq:queue:presence") == 2
