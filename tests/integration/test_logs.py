"""One operationID, followed from the request to the change."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from support import Process, Receiver, Server, Worker, wait_until

from shared.cli.openim import request

JSON_TYPE = {"Content-Type": "application/json"}


def lines(process: Process) -> list[dict[str, Any]]:
    return [json.loads(line) for line in process.text().splitlines()]


def about(process: Process, operation_id: str) -> list[dict[str, Any]]:
    return [line for line in lines(process) if line.get("operation_id") == operation_id]


@pytest.fixture
def both(server: Server, tmp_path: Path, keep: Callable[[Process], Process]) -> tuple[Receiver, Worker]:
    settings = {"log_level": "debug", "log_format": "json"}
    receiver = Receiver(tmp_path, server.url, callback_path="/s3cret", **settings)
    worker = Worker(tmp_path, server.url, **settings)
    keep(receiver)
    keep(worker)
    return receiver, worker


def test_an_operation_is_found_in_every_log_on_its_way(both: tuple[Receiver, Worker], redis: Redis) -> None:
    receiver, worker = both
    callback = request("v3.8", "/s3cret", "Online", "alice", 7)
    assert receiver.post(callback.url, callback.headers, callback.body)[0] == 200
    wait_until(lambda: about(worker, "7-Online-alice"))
    (taken,), (applied,) = about(receiver, "7-Online-alice"), about(worker, "7-Online-alice")
    for line in (taken, applied):
        assert (line["user_id"], line["command"], line["seq"]) == ("alice", "callbackAfterUserOnlineCommand", 7)
    assert taken["message"] == "accepted"
    assert applied["message"] == "applied, status changed"


def test_trouble_with_an_event_names_the_event(both: tuple[Receiver, Worker], redis: Redis) -> None:
    receiver, worker = both
    redis.set("presence:bob", "not a hash")
    callback = request("v3.8", "/s3cret", "Offline", "bob", 8)
    assert receiver.post(callback.url, callback.headers, callback.body)[0] == 200
    wait_until(lambda: len(about(worker, "8-Offline-bob")) > 1)
    first, second, *_ = about(worker, "8-Offline-bob")
    assert (first["level"], first["user_id"]) == ("error", "bob")
    assert "goes on alone" in first["message"]
    assert "still cannot" in second["message"]
    assert "Traceback" not in worker.text()


def test_a_refusal_names_its_operation_and_no_secret(both: tuple[Receiver, Worker]) -> None:
    receiver, _ = both
    headers = {**JSON_TYPE, "operationID": "op-9"}
    assert receiver.post("/s3cret/callbackAfterUserOnlineCommand", headers, b"{")[0] == 400
    assert receiver.post("/s3cret/callbackBeforeSendSingleMsgCommand", headers, b"{}")[0] == 404
    wait_until(lambda: len(about(receiver, "op-9")) == 2)
    refused, foreign = about(receiver, "op-9")
    assert refused["message"].startswith("refused with 400: ")
    assert (foreign["message"], foreign["command"]) == ("not ours", "callbackBeforeSendSingleMsgCommand")
    assert "s3cret" not in receiver.text()


def test_requests_leave_no_line_unless_asked_for(receiver: Receiver) -> None:
    callback = request("v3.8", "/", "Online", "alice", 7)
    assert receiver.post(callback.url, callback.headers, callback.body)[0] == 200
    assert "alice" not in receiver.text()
