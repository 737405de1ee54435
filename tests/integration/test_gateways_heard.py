"""What was heard of OpenIM's gateways, through receiver, queue and worker."""

import json
import threading
from collections.abc import Callable

from click.testing import CliRunner
from redis import Redis
from support import Process, Receiver, Server, Worker, on_one_server, wait_until

from openim_presence.keys import Keys
from shared import gateways
from shared.cli import cli
from shared.events import Event
from worker.gateways import note

pytestmark = on_one_server
KEYS = Keys("presence")


def event(number: int, seq: int, pid: int = 7, peer: str = "10.0.0.7", kind: str = "Online") -> Event:
    command = f"callbackAfterUser{kind}Command"
    return Event("u", command, seq, "", 1, "", f"p_{pid}_{number}", seq, f"{number}", peer)  # type: ignore[arg-type]


def heard(redis: Redis) -> dict[tuple[str, int], int]:
    found = gateways.decode_all(redis.hgetall("presence-gateways"))
    return {name: process.heard for name, process in found.items()}


def test_workers_that_write_at_the_same_time_lose_nothing(redis: Redis, server: Server) -> None:
    def work(first: int) -> None:
        with Redis.from_url(server.url) as client:
            for number in range(first, 60, 3):
                note(client, KEYS, [event(number, 1000 * number), event(number, 1000 * number, kind="Offline")])

    workers = [threading.Thread(target=work, args=(first,)) for first in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert heard(redis) == {("10.0.0.7", 7): 60}


def test_what_is_of_another_type_holds_up_nothing(redis: Redis) -> None:
    redis.set("presence-gateways", "in the way")
    note(redis, KEYS, [event(1, 1)])
    redis.delete("presence-gateways")
    redis.hset("presence-gateways", "10.0.0.7 7", "nonsense")
    note(redis, KEYS, [event(1, 1)])


def test_processes_of_days_ago_are_forgotten_when_a_new_one_comes(redis: Redis) -> None:
    note(redis, KEYS, [event(1, 1000)])
    note(redis, KEYS, [event(1, 1000 + gateways.KEPT_MS, pid=8)])
    assert set(heard(redis)) == {("10.0.0.7", 7), ("10.0.0.7", 8)}
    note(redis, KEYS, [event(1, 1001 + gateways.KEPT_MS, pid=9)])
    assert set(heard(redis)) == {("10.0.0.7", 8), ("10.0.0.7", 9)}


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
    process = gateways.decode_all(redis.hgetall("presence-gateways"))["127.0.0.1", 77]
    for run in process.runs:
        for stretch in run.stretches:
            stretch[2] -= 60_000
    redis.hset("presence-gateways", "127.0.0.1 77", gateways.encode(process))
    shown = CliRunner().invoke(cli, ["status"], env=settings).output
    assert "3 batches heard, 2 lost" in shown
    assert "sent 2 batches of callbacks that never came" in shown
