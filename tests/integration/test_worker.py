"""A worker among keys that are not as they should be."""

import signal
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from redis import Redis
from rq.utils import utcformat
from support import Process, Receiver, Server, Worker, on_one_server, wait_until

from shared.observe.collector import collect_queue
from shared.queue import enqueue_encoded, open_queue
from shared.settings import Settings

EVENT = b'["%s","callbackUserOfflineCommand",1,"",0,"","op",7]'


def enqueue(redis: Redis, *users: bytes) -> None:
    enqueue_encoded(open_queue(redis, Settings()), [EVENT % user for user in users], 0)


def is_offline(redis: Redis, user: str) -> bool:
    return redis.hget(f"presence:{user}", "status") == b"offline"


@pytest.mark.parametrize("key", ["presence-stats", "rq:wip:presence", "rq:scheduled:presence"])
def test_a_key_of_a_wrong_type_beside_the_queue_stops_nothing(
    server: Server, redis: Redis, tmp_path: Path, keep: Callable[[Process], Process], key: str
) -> None:
    redis.set(key, "in the way")
    worker = Worker(tmp_path, server.url)
    keep(worker)
    wait_until(lambda: "working on" in worker.text())
    for number in range(3):
        enqueue(redis, b"user%d" % number)
    if key != "rq:wip:presence":  # without that RQ can run nothing
        wait_until(lambda: all(is_offline(redis, f"user{number}") for number in range(3)))
        wait_until(lambda: not redis.keys("rq:job:*"))
    wait_until(lambda: "WRONGTYPE" in worker.text())
    redis.delete(key)
    wait_until(lambda: all(is_offline(redis, f"user{number}") for number in range(3)), 40)
    assert "Traceback" not in worker.text()


def test_a_scheduled_job_that_is_gone_holds_up_no_other(worker: Worker, redis: Redis) -> None:
    redis.zadd("rq:scheduled:presence", {"gone": 1})
    redis.hset("rq:job:half", "status", "scheduled")
    redis.zadd("rq:scheduled:presence", {"half": 2})
    wait_until(lambda: redis.zcard("rq:scheduled:presence") == 0)
    enqueue(redis, b"alice")
    wait_until(lambda: is_offline(redis, "alice"))


def test_a_suspended_worker_still_hears_a_signal(worker: Worker, redis: Redis) -> None:
    wait_until(lambda: redis.scard("rq:workers") == 1)
    redis.set("rq:suspended", 1)
    enqueue(redis, b"alice")
    wait_until(lambda: any(state == b"suspended" for state in states(redis)))
    assert worker.stop() == 0


def states(redis: Redis) -> list[bytes | None]:
    return [redis.hget(key, "state") for key in redis.smembers("rq:workers")]


def test_a_worker_that_was_struck_off_is_back_on_the_list(worker: Worker, redis: Redis) -> None:
    wait_until(lambda: redis.scard("rq:workers") == 1)
    (name,) = redis.smembers("rq:workers")
    redis.delete("rq:workers", "rq:workers:presence", name)
    wait_until(lambda: redis.smembers("rq:workers:presence") == {name} and redis.hget(name, "queues"))


def test_what_another_presence_server_has_forgotten_is_applied_again(
    tmp_path: Path, keep: Callable[[Process], Process]
) -> None:
    queue, presence = Server(tmp_path / "queue"), Server(tmp_path / "presence", appendonly="no")
    worker = Worker(tmp_path, queue.url, REDIS_URL=presence.url, QUEUE_URL=queue.url)
    for each in (queue, presence, worker):
        keep(each)
    wait_until(lambda: queue.client.hget("presence-sweep", "presence"))
    enqueue(queue.client, b"alice")
    wait_until(lambda: is_offline(presence.client, "alice"))
    presence.kill()
    presence.restart()
    assert not presence.client.exists("presence:alice")
    wait_until(lambda: is_offline(presence.client, "alice"))
    wait_until(lambda: "applied again" in worker.text())
    wait_until(lambda: not queue.client.keys("rq:job:*"))
    assert not queue.client.exists("rq:finished:presence") and not queue.client.keys("rq:results:*")


def test_a_unix_socket_will_do(tmp_path: Path, keep: Callable[[Process], Process]) -> None:
    path = tmp_path / "s"
    server = Server(tmp_path / "server", unixsocket=str(path))
    keep(server)
    url = f"unix://{path}"
    receiver, worker = Receiver(tmp_path, url), Worker(tmp_path, url)
    keep(receiver)
    keep(worker)
    body = b'{"userID":"u","callbackCommand":"callbackUserOfflineCommand","seq":1,"operationID":"op"}'
    assert receiver.post("/", {"Content-Type": "application/json"}, body)[0] == 200
    wait_until(lambda: is_offline(server.client, "u"))


def test_a_queue_of_a_wrong_type_is_not_littered(server: Server, redis: Redis, receiver: Receiver) -> None:
    redis.set("rq:queue:presence", "in the way")
    body = b'{"userID":"u","callbackCommand":"callbackUserOfflineCommand","seq":1,"operationID":"op"}'
    assert receiver.post("/", {"Content-Type": "application/json"}, body)[0] == 200
    wait_until(lambda: "is not available" in receiver.text())
    wait_until(lambda: not redis.keys("rq:job:*"))
    redis.delete("rq:queue:presence")
    wait_until(lambda: redis.llen("rq:queue:presence") == 1)


def test_a_queue_of_a_wrong_type_loses_no_job_that_waits_to_be_tried_again(worker: Worker, redis: Redis) -> None:
    redis.set("presence:bad", "not a hash")
    enqueue(redis, b"bad")
    wait_until(lambda: redis.zcard("rq:scheduled:presence") == 1)
    redis.set("rq:queue:presence", "in the way")
    wait_until(lambda: "the key rq:queue:presence is not a list" in worker.text())
    (job_id,) = redis.zrange("rq:scheduled:presence", 0, -1)
    redis.zadd("rq:scheduled:presence", {job_id: 1})  # its pause is over
    assert worker.text().count("is not a list") < 3
    redis.delete("rq:queue:presence", "presence:bad")
    wait_until(lambda: is_offline(redis, "bad"))


@on_one_server
def test_a_worker_is_the_same_one_after_an_outage(
    server: Server, redis: Redis, tmp_path: Path, keep: Callable[[Process], Process]
) -> None:
    """Otherwise `presence status` would show it twice, once as a silent worker."""
    worker = Worker(tmp_path, server.url)
    keep(worker)
    before = wait_until(lambda: redis.smembers("rq:workers"))
    redis.config_set("maxmemory", "1mb")
    try:
        wait_until(lambda: "is not available" in worker.text())
    finally:
        redis.config_set("maxmemory", "0")
    wait_until(lambda: "is back after" in worker.text())
    wait_until(lambda: redis.hget(next(iter(before)), "state") == b"idle")
    assert redis.smembers("rq:workers") == before


Start = Callable[[str], tuple[Worker, str]]


@pytest.fixture
def start(server: Server, redis: Redis, tmp_path: Path, keep: Callable[[Process], Process]) -> Start:
    """Starts a worker and waits for its first maintenance; returns its name as well."""

    def start(name: str) -> tuple[Worker, str]:
        before = names(redis)
        worker = Worker(tmp_path, server.url, name)
        keep(worker)
        (new,) = wait_until(lambda: names(redis) - before)
        wait_for_maintenance(redis)
        return worker, new

    return start


def names(redis: Redis) -> set[str]:
    return {key.decode().rpartition(":")[2] for key in redis.smembers("rq:workers:presence")}


def wait_for_maintenance(redis: Redis) -> None:
    """Of the worker that runs: its last step adds it again."""
    redis.delete("rq:workers")
    wait_until(lambda: redis.exists("rq:workers"))


def is_silent(redis: Redis, *workers: str) -> bool:
    return {each.name for each in collect_queue(redis, Settings()).silent_workers} == set(workers)


def make_silent(redis: Redis, name: str) -> None:
    """As it is a while after its last heartbeat."""
    redis.hset(f"rq:worker:{name}", "last_heartbeat", utcformat(datetime(2026, 1, 1, tzinfo=UTC)))


@on_one_server
def test_a_killed_worker_is_no_longer_named_once_another_is_in_its_place(redis: Redis, start: Start) -> None:
    killed, name = start("killed")
    killed.kill()
    make_silent(redis, name)
    assert is_silent(redis, name)
    successor, _ = start("successor")
    wait_until(lambda: is_silent(redis))
    assert f"replaces worker {name}" in successor.text()


@on_one_server
def test_a_frozen_worker_is_named_whoever_starts_beside_it(redis: Redis, start: Start) -> None:
    frozen, name = start("frozen")
    frozen.signal(signal.SIGSTOP)
    make_silent(redis, name)
    start("beside")
    assert is_silent(redis, name)


@on_one_server
def test_one_successor_is_in_the_place_of_one_killed_worker(redis: Redis, start: Start) -> None:
    both = [start("one"), start("two")]
    for killed, name in both:
        killed.kill()
        make_silent(redis, name)
    start("successor")
    wait_until(lambda: any(is_silent(redis, name) for _, name in both))
    start("second successor")
    wait_until(lambda: is_silent(redis))


@on_one_server
def test_a_worker_that_ran_already_is_no_successor(redis: Redis, start: Start) -> None:
    start("beside")
    killed, name = start("killed")
    killed.kill()
    make_silent(redis, name)
    wait_for_maintenance(redis)
    assert is_silent(redis, name)
