"""What the admin ports say, of one process and of several, with Redis and without."""

import json
import logging
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis
from support import Process, Receiver, Server, Worker, children, free_port, wait_until

from shared.cli.openim import request
from shared.logs.outage import Outage
from shared.settings import Settings
from worker.admin import HANGS_SECONDS, MOST_PEERS, Pages
from worker.heartbeat import Heartbeat

NOWHERE = "redis://127.0.0.1:1/0"
Samples = dict[tuple[str, ...], float]


def get(port: int, page: str) -> tuple[int, str]:
    try:
        with urlopen(f"http://127.0.0.1:{port}{page}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def scrape(port: int) -> Samples:
    """Each sample, by its name and the values of its labels in the order of their names."""
    status, text = get(port, "/metrics")
    assert status == 200
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def post(receiver: Receiver, user: str, shape: str = "v3.8", seq: int = 1) -> None:
    callback = request(shape, "/", "Online", user, seq)
    assert receiver.post(callback.url, callback.headers, callback.body)[0] == 200


def test_every_request_is_counted_by_what_became_of_it(receiver: Receiver) -> None:
    post(receiver, "alice")
    post(receiver, "alice", "document")
    post(receiver, "alice", "v2")
    assert receiver.post("/", {}, b"", "GET")[0] == 405
    assert receiver.post("/callbackAfterUserOnlineCommand", {"Content-Type": "application/json"}, b"{")[0] == 400
    assert receiver.post("/callbackBeforeSendGroupMsgCommand", {"Content-Type": "application/json"}, b"{}")[0] == 404
    found = scrape(receiver.admin_port)
    counted = {tuple(labels): count for (name, *labels), count in found.items() if name == "presence_callbacks_total"}
    assert counted == {
        ("callbackAfterUserOnlineCommand", "accepted", "path", "200"): 1,
        ("callbackUserOnlineCommand", "accepted", "document", "200"): 1,
        ("callbackUserOnlineCommand", "accepted", "body", "200"): 1,
        ("other", "refused", "body", "405"): 1,
        ("callbackAfterUserOnlineCommand", "refused", "path", "400"): 1,
        ("other", "foreign", "other", "404"): 1,
    }
    assert found["presence_answer_seconds_count",] == 3
    assert found["presence_answer_seconds_bucket", "+Inf"] == 3
    assert 0 < found["presence_answer_seconds_sum",] < 1


def test_the_way_of_an_event_can_be_followed(receiver: Receiver, redis: Redis) -> None:
    post(receiver, "alice")
    wait_until(lambda: redis.llen("rq:queue:presence") == 1)
    found = wait_until(lambda: (page := scrape(receiver.admin_port))["presence_journal_events",] == 0 and page)
    assert found["presence_relay_pushes_total", "ok"] == 1
    assert found["presence_queue_jobs",] == 1
    assert 0 <= found["presence_queue_oldest_seconds",] < 60
    assert found["presence_workers",] == found["presence_failed_batches",] == 0
    assert found["presence_redis_up", "queue"] == found["presence_redis_up", "presence"] == 1
    assert found["presence_ready",] == 1
    assert found["presence_journal_room_bytes",] > 0


def test_the_counters_of_the_whole_system_are_shown(receiver: Receiver, redis: Redis) -> None:
    fields = {"applied": 7, "stale": 2, "changes": 3, "users_online": 5, "lag:5": 4, "lag:inf": 1, "lag_ms": 1500}
    redis.hset("presence-stats", mapping=fields)
    found = scrape(receiver.admin_port)
    assert [found["presence_events_total", name] for name in ("applied", "duplicate", "stale", "failed")] == [
        7,
        0,
        2,
        0,
    ]
    assert found["presence_changes_total",] == 3
    assert found["presence_users_online",] == 5
    assert found["presence_lag_seconds_bucket", "0.005"] == found["presence_lag_seconds_bucket", "3600.0"] == 4
    assert found["presence_lag_seconds_count",] == 5
    assert found["presence_lag_seconds_sum",] == 1.5


def test_a_scrape_without_redis_says_so_in_time(tmp_path: Path, keep: Callable[[Process], Process]) -> None:
    receiver = Receiver(tmp_path, NOWHERE)
    keep(receiver)
    post(receiver, "alice")
    post(receiver, "bob")
    wait_until(lambda: scrape(receiver.admin_port).get(("presence_relay_pushes_total", "failed"), 0) > 0)
    time.sleep(0.6)  # the watermark is half a second early
    started = time.monotonic()
    found = scrape(receiver.admin_port)
    assert time.monotonic() - started < 2
    assert found["presence_redis_up", "queue"] == found["presence_redis_up", "presence"] == 0
    assert found["presence_journal_events",] == 2
    assert found["presence_journal_bytes",] > 100
    assert not {name for name, *_ in found if name.startswith(("presence_queue", "presence_events", "presence_lag"))}


def test_a_frozen_redis_holds_up_neither_a_scrape_nor_many(tmp_path: Path, keep: Callable[[Process], Process]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    server = Server(tmp_path / "server")
    keep(server)
    receiver = Receiver(tmp_path, server.url)
    keep(receiver)
    assert scrape(receiver.admin_port)["presence_redis_up", "queue"] == 1
    server.signal(signal.SIGSTOP)
    started = time.monotonic()
    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(scrape, [receiver.admin_port] * 20))
    assert time.monotonic() - started < 2
    assert all(page["presence_redis_up", "queue"] == page["presence_redis_up", "presence"] == 0 for page in found)
    server.signal(signal.SIGCONT)
    wait_until(lambda: scrape(receiver.admin_port)["presence_redis_up", "queue"] == 1)


def test_a_redis_that_answers_and_takes_nothing_is_not_up(tmp_path: Path, keep: Callable[[Process], Process]) -> None:
    server = Server(tmp_path / "server")
    keep(server)
    receiver = Receiver(tmp_path, server.url)
    keep(receiver)
    server.client.config_set("maxmemory", "1")
    post(receiver, "alice")
    wait_until(lambda: scrape(receiver.admin_port)["presence_redis_up", "queue"] == 0)
    server.client.config_set("maxmemory", "0")
    wait_until(lambda: scrape(receiver.admin_port)["presence_redis_up", "queue"] == 1)


def test_the_page_of_several_processes_is_their_sum_and_never_goes_back(
    tmp_path: Path, keep: Callable[[Process], Process]
) -> None:
    import os

    receiver = Receiver(tmp_path, NOWHERE, processes="2")
    keep(receiver)
    wait_until(lambda: receiver.readiness()[0] == 200)

    def accepted() -> float:
        return scrape(receiver.admin_port).get(
            ("presence_callbacks_total", "callbackAfterUserOnlineCommand", "accepted", "path", "200"), 0
        )

    for number in range(40):  # each on a new connection, which the kernel deals out
        post(receiver, f"u{number}")
    assert accepted() == 40
    first = min(children(receiver))
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: first not in children(receiver) and receiver.readiness()[0] == 200)
    assert accepted() == 40
    post(receiver, "another")
    assert accepted() == 41
    assert scrape(receiver.admin_port)["presence_answer_seconds_count",] == 41


def test_what_is_forwarded_is_counted(tmp_path: Path, keep: Callable[[Process], Process]) -> None:
    receiver = Receiver(tmp_path, NOWHERE, forward_url="http://127.0.0.1:1/")
    keep(receiver)
    assert receiver.post("/callbackBeforeSendGroupMsgCommand", {"Content-Type": "application/json"}, b"{}")[0] == 502
    found = scrape(receiver.admin_port)
    assert found["presence_forwards_total", "failed"] == 1
    assert found["presence_forwards_total", "ok"] == 0
    assert found["presence_callbacks_total", "other", "forwarded", "other", "502"] == 1


# A worker's


@pytest.fixture
def watched(server: Server, tmp_path: Path, keep: Callable[[Process], Process]) -> tuple[Worker, int]:
    port = free_port()
    worker = Worker(tmp_path, server.url, worker_admin_port=str(port))
    keep(worker)
    wait_until(lambda: "working on" in worker.text())
    return worker, port


def test_a_worker_shows_what_became_of_the_events(
    watched: tuple[Worker, int], receiver: Receiver, redis: Redis
) -> None:
    _, port = watched
    wait_until(lambda: redis.scard("rq:workers:presence") == 1)
    for shape in ("v3.8", "v3.8", "v2"):
        post(receiver, "alice", shape)
    found = wait_until(
        lambda: (
            (page := scrape(port))["presence_events_total", "applied"] == 1
            and page["presence_events_total", "duplicate"] == 2
            and page
        )
    )
    assert found["presence_changes_total",] == 1
    assert found["presence_lag_seconds_count",] == 1
    assert found["presence_lag_seconds_bucket", "30.0"] == 1
    assert found["presence_workers",] == 1
    assert found["presence_redis_up", "queue"] == found["presence_redis_up", "presence"] == 1
    assert found.keys() >= {(name, *labels) for name, *labels in scrape(receiver.admin_port) if "queue" in name}


def test_a_worker_is_alive_whatever_redis_does(tmp_path: Path, keep: Callable[[Process], Process]) -> None:
    port = free_port()
    worker = Worker(tmp_path, NOWHERE, worker_admin_port=str(port))
    keep(worker)
    wait_until(lambda: "is not available" in worker.text())
    status, body = get(port, "/healthz")
    assert (status, json.loads(body)["status"], json.loads(body)["queue"]) == (200, "alive", "down")
    assert scrape(port)["presence_redis_up", "queue"] == 0
    assert get(port, "/other")[0] == 404


def test_strangers_at_a_workers_admin_port_take_neither_files_nor_threads(watched: tuple[Worker, int]) -> None:
    worker, port = watched

    def open_now() -> dict[str, int]:
        process = Path(f"/proc/{worker.popen.pid}")
        return {kind: len(list((process / kind).iterdir())) for kind in ("fd", "task")}

    before = open_now()
    with ExitStack() as open_:
        for _ in range(150):
            stranger = open_.enter_context(socket.create_connection(("127.0.0.1", port), 10))
            stranger.sendall(b"GET /")
        assert get(port, "/healthz")[0] == 200
        # By themselves they would go after 2 s.
        wait_until(lambda: max(open_now()[kind] - count for kind, count in before.items()) <= MOST_PEERS + 8, 1.5)
    wait_until(lambda: open_now()["task"] <= before["task"] + 1)


def test_a_worker_that_hangs_is_not_alive() -> None:
    pulse = Heartbeat()
    outage = Outage(logging.getLogger("x"), "it")
    pages = Pages(Settings(), pulse, outage, outage)
    assert pages.healthz()[0] == 200
    pulse._at -= HANGS_SECONDS
    status, _, body = pages.healthz()
    assert status == 503
    assert b"loop has not run" in body


def test_a_worker_admin_port_in_use_stops_the_start_with_one_line(
    watched: tuple[Worker, int], server: Server, tmp_path: Path
) -> None:
    second = Worker(tmp_path, server.url, "second", worker_admin_port=str(watched[1]))
    assert second.popen.wait(20) == 1
    assert "PRESENCE_WORKER_ADMIN_PORT: cannot listen on" in second.text()
    assert "its own port, or 0" in second.text()
    assert "Traceback" not in second.text()


def test_a_worker_admin_host_on_which_nothing_can_listen_is_named(server: Server, tmp_path: Path) -> None:
    worker = Worker(tmp_path, server.url, admin_host="203.0.113.7", worker_admin_port=str(free_port()))
    assert worker.popen.wait(20) == 1
    assert worker.text().startswith("worker: PRESENCE_ADMIN_HOST: cannot listen on 203.0.113.7:")
