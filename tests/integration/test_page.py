"""The page's data on the admin port, without a browser."""

import base64
import http.client
import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from failed import fail
from redis import Redis
from support import Process, Receiver, Server, Worker, on_one_server, wait_until

from receiver.page.live import STREAMS_MOST
from shared.cli.openim import request
from shared.queue import open_queue
from shared.settings import Settings

pytestmark = on_one_server
BASIC = {"Authorization": "Basic " + base64.b64encode(b"admin:geheim").decode()}
ODD_USERS = [
    "a/b",
    "..",
    ".",
    "%2F",
    "a?b#c",
    "__proto__",
    "<img src=x onerror=alert(1)>",
    "\u202egnp.exe",
    "--all",
    "a b",
    "用户",
]

Ask = Callable[..., tuple[int, Any]]


def ask(port: int, path: str, headers: dict[str, str] | None = None, body: Any = None) -> tuple[int, Any]:
    """Sends a request. The status, and the JSON or the text."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("POST" if body is not None else "GET", path, body and json.dumps(body), headers or {})
        answer = connection.getresponse()
        text = answer.read().decode()
        return answer.status, json.loads(text) if answer.headers.get_content_type() == "application/json" else text
    finally:
        connection.close()


@contextmanager
def stream(port: int) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/api/stream")
    try:
        yield connection.getresponse()
    finally:
        connection.close()


def events(answer: http.client.HTTPResponse) -> Iterator[tuple[str, Any]]:
    name = ""
    while line := answer.readline().decode().rstrip("\n"):
        if line.startswith("retry:"):
            answer.readline()
            continue
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        else:
            yield name, json.loads(value)
            answer.readline()


@pytest.fixture
def worker(server: Server, tmp_path: Path, keep: Callable[[Process], Process]) -> Worker:
    worker = Worker(tmp_path, server.url)
    keep(worker)
    return worker


def test_status_is_what_the_command_prints(receiver: Receiver, worker: Worker) -> None:
    status, said = wait_until(lambda: (found := ask(receiver.admin_port, "/api/status"))[1]["workers"] and found)
    assert status == 200
    assert {"healthy", "problems", "queue", "rates", "users_online", "redis", "receiver_here"} <= said.keys()
    assert wait_until(lambda: ask(receiver.admin_port, "/api/status")[1]["healthy"])


def test_the_stream_begins_with_the_history_and_goes_on_with_readings(receiver: Receiver, redis: Redis) -> None:
    redis.xadd("presence-changes", {"user_id": "alice", "status": "online", "changed_at": "1"})
    with stream(receiver.admin_port) as answer:
        assert answer.headers.get_content_type() == "text/event-stream"
        found = events(answer)
        assert next(found)[0] == "history"
        readings = [next(found) for _ in range(3)]
    assert {name for name, _ in readings} == {"status"}
    first, *_, last = (reading for _, reading in readings)
    assert last["at"] > first["at"]
    assert last["changes_newest"][0]["user_id"] == "alice"


def test_a_frozen_redis_shows_within_three_seconds(receiver: Receiver, server: Server) -> None:
    with stream(receiver.admin_port) as answer:
        found = events(answer)
        wait_until(lambda: "does not answer" not in str(next(found)[1]))
        server.signal(signal.SIGSTOP)
        frozen_at = time.monotonic()
        try:
            while "does not answer" not in str(next(found)[1]):
                pass
            took = time.monotonic() - frozen_at
        finally:
            server.signal(signal.SIGCONT)
    assert took < 3.5, took  # and half a second for a busy machine


def test_a_stop_does_not_wait_for_those_who_watch(receiver: Receiver) -> None:
    with stream(receiver.admin_port) as answer:
        found = events(answer)
        next(found)
        began = time.monotonic()
        assert receiver.stop() == 0
        assert time.monotonic() - began < 5
        assert list(found) is not None  # it ends, without an error


def test_there_is_an_end_to_how_many_watch(receiver: Receiver) -> None:
    connections = []
    for _ in range(STREAMS_MOST):
        connection = http.client.HTTPConnection("127.0.0.1", receiver.admin_port, timeout=10)
        connection.request("GET", "/api/stream")
        assert connection.getresponse().status == 200
        connections.append(connection)
    assert ask(receiver.admin_port, "/api/stream")[0] == 503
    for connection in connections:
        connection.close()
    wait_until(lambda: is_taken(receiver), what="room for another")


def is_taken(receiver: Receiver) -> bool:
    with stream(receiver.admin_port) as answer:
        return answer.status == 200


@pytest.mark.parametrize("user", ODD_USERS)
def test_a_user_of_any_name_is_found(receiver: Receiver, redis: Redis, user: str) -> None:
    redis.hset(f"presence:{user}", mapping={"status": "online", "seq": "1", "sessions": "1"})
    paths = [f"/api/users?id={quote(user, safe='')}", f"/api/users/{quote(user, safe='')}"]
    for path in paths:
        status, said = ask(receiver.admin_port, path)
        assert (status, said["user_id"], said["status"]) == (200, user, "online")


def test_a_user_who_is_not_said_is_asked_for(receiver: Receiver) -> None:
    status, said = ask(receiver.admin_port, "/api/users?id=")
    assert status == 400 and "Name a user" in said


def test_a_foreign_host_or_origin_gets_nothing_but_the_metrics(receiver: Receiver) -> None:
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        for path in ("/api/status", "/api/stream", "/api/users/alice", "/api/failed"):
            status, said = ask(receiver.admin_port, path, headers)
            assert status == 403, (path, headers)
            assert "alice" not in said
        for path in ("/healthz", "/readyz", "/metrics"):
            assert ask(receiver.admin_port, path, headers)[0] == 200
    assert ask(receiver.admin_port, "/", {"Host": "evil.example"})[0] == 403


def test_the_page_may_load_nothing_from_elsewhere(receiver: Receiver) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", receiver.admin_port, timeout=10)
    connection.request("GET", "/")
    answer = connection.getresponse()
    text = answer.read().decode()
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "://" not in text


@pytest.fixture
def guarded(server: Server, tmp_path: Path, keep: Callable[[Process], Process]) -> Receiver:
    receiver = Receiver(tmp_path, server.url, admin_auth="admin:geheim")
    keep(receiver)
    return receiver


def test_failed_batches_are_requeued_and_dropped_with_the_password_and_not_without(
    guarded: Receiver, redis: Redis
) -> None:
    queue = open_queue(redis, Settings())
    fail(queue, redis, "one")
    fail(queue, redis, "two")
    own = {"Origin": f"http://127.0.0.1:{guarded.admin_port}"}
    for headers, status in ((own, 401), (BASIC, 403), ({**BASIC, "Origin": "http://evil.example"}, 403)):
        assert ask(guarded.admin_port, "/api/failed/drop", headers, {"ids": ["one"]})[0] == status
    assert ask(guarded.admin_port, "/api/failed")[0] == 401
    assert redis.zcard("rq:failed:presence") == 2
    status, said = ask(guarded.admin_port, "/api/failed", BASIC)
    assert (status, said["count"], said["may_act"]) == (200, 2, True)
    assert said["failed"][0]["events"][0]["seq"] == "9007199254740993"
    assert ask(guarded.admin_port, "/api/failed/requeue", {**BASIC, **own}, {"ids": ["one", "none"]}) == (
        200,
        {"done": ["one"]},
    )
    assert queue.job_ids == ["one"]
    assert ask(guarded.admin_port, "/api/failed/drop", {**BASIC, **own}, {"ids": ["two"]}) == (200, {"done": ["two"]})
    assert not redis.zcard("rq:failed:presence")


@pytest.mark.parametrize("body", [[], {}, {"ids": []}, {"ids": "one"}, {"ids": [1]}, {"id": ["one"]}])
def test_who_acts_says_on_what(guarded: Receiver, body: Any) -> None:
    own = {**BASIC, "Origin": f"http://127.0.0.1:{guarded.admin_port}"}
    status, said = ask(guarded.admin_port, "/api/failed/drop", own, body)
    assert status == 400 and "ids" in said


def test_several_processes_have_one_page(server: Server, tmp_path: Path, keep: Callable[[Process], Process]) -> None:
    receiver = Receiver(tmp_path, server.url, processes="2")
    keep(receiver)
    for number in range(20):
        callback = request("v3.8", "", "Online", f"user{number}", number + 1)
        assert receiver.post(callback.url, callback.headers, callback.body)[0] == 200
    with stream(receiver.admin_port) as answer:
        found = events(answer)
        wait_until(lambda: (said := next(found))[0] == "status" and said[1]["callbacks"]["accepted"] == 20)
    assert receiver.stop() == 0  # so that nothing of it comes to the server of the next test
