"""What was heard of OpenIM's gateways, through receiver, queue and worker."""

import json
import threading
import time
from collections.abc import Callable
from unittest.mock import patch

from click.testing import CliRunner
from redis import Redis
from rq import SimpleWorker
from rq.serializers import JSONSerializer
from support import Process, Receiver, Server, Worker, on_one_server, wait_until

from openim_presence.keys import Keys
from shared.cli import cli
from shared.errors import Unavailable
from shared.events import Event, encode
from shared.gateways import records
from shared.gateways.run import LOST_MS
from shared.gateways.view import KEPT_MS, Gateways
from shared.queue import BatchJob, enqueue_encoded, open_queue
from shared.settings import Settings
from worker import jobs
from worker.gateways import MOST_PROCESSES, note
from worker.store.store import Store

pytestmark = on_one_server
KEYS = Keys("presence")


def event(number: int, seq: int, pid: int = 7, peer: str = "10.0.0.7", kind: str = "Online") -> Event:
    command = f"callbackAfterUser{kind}Command"
    return Event("u", command, seq, "", 1, "", f"p_{pid}_{number}", seq, f"{number}", peer)  # type: ignore[arg-type]


def hear(redis: Redis, number: int, at: int, pid: int = 7) -> None:
    """A batch that is sent, received and applied at one time."""
    note(redis, KEYS, [event(number, at, pid), event(number, at, pid, kind="Offline")], at)


def shown(redis: Redis, at: int) -> Gateways:
    return records.read(redis.hgetall("presence-gateways"), at)


def heard(redis: Redis) -> dict[tuple[str, int], int]:
    found = records.decode_all(redis.hgetall("presence-gateways"))
    return {name: process.heard for name, process in found.items()}


def test_workers_that_write_at_the_same_time_lose_nothing(redis: Redis, server: Server) -> None:
    def work(first: int) -> None:
        with Redis.from_url(server.url) as client:
            for number in range(first, 60, 3):
                hear(client, number, 1000 * number)

    workers = [threading.Thread(target=work, args=(first,)) for first in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert heard(redis) == {("10.0.0.7", 7): 60}


def test_what_is_of_another_type_holds_up_nothing(redis: Redis) -> None:
    redis.set("presence-gateways", "in the way")
    hear(redis, 1, 1)
    redis.delete("presence-gateways")
    redis.hset("presence-gateways", "10.0.0.7 7", '{"runs":[{"stretches":[["a"]]}]}')
    hear(redis, 1, 1)
    assert heard(redis) == {("10.0.0.7", 7): 1}


def test_processes_of_days_ago_are_forgotten_when_a_new_one_comes(redis: Redis) -> None:
    hear(redis, 1, 1000)
    hear(redis, 1, 1000 + KEPT_MS, pid=8)
    assert set(heard(redis)) == {("10.0.0.7", 7), ("10.0.0.7", 8)}
    hear(redis, 1, 1001 + KEPT_MS, pid=9)
    assert set(heard(redis)) == {("10.0.0.7", 8), ("10.0.0.7", 9)}


def test_the_sums_never_go_back(redis: Redis) -> None:
    """Prometheus would take a lower sum for a restart from 0, and alert."""

    def sums() -> tuple[int, int]:
        found = shown(redis, at + LOST_MS + 1)
        return found.heard, found.lost

    at = 0
    for number in (1, 2, 5):
        at += 1000
        hear(redis, number, at)
    assert sums() == (3, 2)
    note(redis, KEYS, [event(3, 3000)], at + LOST_MS + 1)  # it comes late, when 3 and 4 were thought lost
    assert (sums(), shown(redis, at + LOST_MS + 1).processes[0].lost) == ((4, 2), 1)
    for start in range(1, 7):  # more runs than are kept
        at = 1_000_000 * start
        before = sums()
        for number in range(1, 11):
            hear(redis, number, at + number)
        assert sums() >= before
    assert heard(redis)["10.0.0.7", 7] == 40
    assert sums()[1] == 2
    at += 2 * KEPT_MS
    before = sums()
    hear(redis, 1, at, pid=8)  # and the process is forgotten
    assert set(heard(redis)) == {("10.0.0.7", 8)}
    assert sums() == (before[0] + 1, 2)


def test_made_up_processes_are_bounded_and_push_out_none_that_is_heard(redis: Redis) -> None:
    for start in range(0, 3 * MOST_PROCESSES, 300):
        made_up = [event(9, start, pid=1000 + start + each) for each in range(300)]
        note(redis, KEYS, [event(start + 1, start), event(start + 2, start), *made_up], start)
    found = heard(redis)
    assert len(found) == MOST_PROCESSES
    assert found["10.0.0.7", 7] >= 2


def test_what_cannot_be_applied_now_was_heard_all_the_same(redis: Redis) -> None:
    class Away(Store):
        def apply(self, *_: object, **__: object) -> list[object]:  # type: ignore[override]
            raise Unavailable("presence is away")

    queue = open_queue(redis, Settings())
    now = time.time_ns() // 1_000_000
    enqueue_encoded(queue, [encode(event(1, now))], now)
    worker = SimpleWorker([queue], connection=redis, serializer=JSONSerializer, job_class=BatchJob)
    with (
        patch.object(jobs, "_store", lambda: Away(redis, Settings())),
        patch.object(jobs, "_settings", Settings),
        patch.object(jobs, "PATIENCE_SECONDS", 0),
    ):
        worker.work(burst=True, logging_level="CRITICAL")
    assert heard(redis) == {("10.0.0.7", 7): 1}
    assert len(queue.scheduled_job_registry) == 1


def test_lost_batches_are_shown(
    receiver: Receiver, worker: Worker, redis: Redis, keep: Callable[[Process], Process]
) -> None:
    headers = {"Content-Type": "application/json"}
    for number in (1, 2, 5):
        for kind in ("Online", "Offline"):
            body = {
                "userID": f"user{number}",
                "callbackCommand": f"callbackAfterUser{kind}Command",
                "seq": 1732345678901 + 1000 * number,
                "platformID": 1,
                "operationID": f"p_77_{number}",
            }
            assert receiver.post(f"/{body['callbackCommand']}", headers, json.dumps(body).encode())[0] == 200
    wait_until(lambda: heard(redis) == {("127.0.0.1", 77): 3})
    settings = {"PRESENCE_REDIS_URL": receiver.environment["PRESENCE_REDIS_URL"], "PRESENCE_ADMIN_PORT": "0"}
    (gateway,) = json.loads(CliRunner().invoke(cli, ["status", "--json"], env=settings).output)["gateways"]
    assert (gateway["peer"], gateway["pid"], gateway["state"], gateway["heard"]) == ("127.0.0.1", 77, "live", 3)
    # As a minute later: what was heard is put a minute back.
    process = records.decode_all(redis.hgetall("presence-gateways"))["127.0.0.1", 77]
    for run in process.runs:
        run.stretches = [(first, last, at_ms - 60_000) for first, last, at_ms in run.stretches]
    redis.hset("presence-gateways", "127.0.0.1 77", records.encode(process))
    shown = CliRunner().invoke(cli, ["status"], env=settings).output
    assert "3 batches heard, 2 lost" in shown
    assert "sent 2 batches of callbacks that never came, the last are 3-4" in shown
