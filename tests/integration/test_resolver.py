"""A resolver that does not answer: programs stop, and commands give up, in good time."""

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from redis.exceptions import ConnectionError
from support import Process, Receiver, Server, Worker, on_one_server, wait_until

from shared.redis.client import connect, is_outage
from shared.redis.connections import _LookUp

#: The resolver, as it is for names while its servers are silent.
_SILENT = """
import socket, time
own = socket.getaddrinfo
def silent(host, *arguments, **options):
    if host not in ("localhost", "127.0.0.1", "0.0.0.0"):
        time.sleep(40)
    return own(host, *arguments, **options)
socket.getaddrinfo = silent
from {module} import {main}
raise SystemExit({main}())
"""
URLS = {"redis_url": "redis://presence.silent:6379/0", "queue_url": "redis+sentinel://sentinel.silent/main"}


class Deaf(Worker):
    """A worker whose resolver does not answer."""

    def start(self) -> None:
        self.command = [sys.executable, "-c", _SILENT.format(module="worker.__main__", main="main")]
        super().start()


class DeafReceiver(Receiver):
    def start(self) -> None:
        self.command = [sys.executable, "-c", _SILENT.format(module="receiver.__main__", main="main")]
        super().start()


def test_a_worker_stops_within_what_compose_gives_it(tmp_path: Path, keep: Callable[[Process], Process]) -> None:
    worker = Deaf(tmp_path, URLS["redis_url"])
    keep(worker)
    wait_until(lambda: "the resolver has not found presence.silent within 2 s" in worker.text())
    assert worker.stop(8) == 0


@on_one_server
def test_a_receiver_stops_although_it_cannot_forward(
    server: Server, tmp_path: Path, keep: Callable[[Process], Process]
) -> None:
    receiver = DeafReceiver(tmp_path, server.url, forward_url="http://business.silent:8080")
    keep(receiver)
    assert receiver.post("/x/callbackBeforeSendSingleMsgCommand", {"Content-Type": "application/json"}, b"{}")[0] == 502
    assert receiver.stop(8) == 0


@on_one_server
@pytest.mark.parametrize("command", ["why", "reconcile"])
def test_a_command_that_asks_openim_ends_in_good_time(server: Server, command: str) -> None:
    openim = {"OPENIM_API": "http://openim.silent:10002", "OPENIM_SECRET": "openIM123", "REDIS_URL": server.url}
    started_at = time.monotonic()
    ran = subprocess.run(
        [sys.executable, "-c", _SILENT.format(module="shared.cli", main="cli"), command, "alice"],
        env={**os.environ, **{f"PRESENCE_{name}": value for name, value in openim.items()}},
        capture_output=True,
        text=True,
        check=False,
    )
    assert time.monotonic() - started_at < 30  # 5 s for OpenIM; the resolver takes 40
    assert re.search(r"OpenIM.* (does not answer|no result) within", ran.stdout + ran.stderr)


@pytest.mark.parametrize("url", [*URLS.values(), "redis+cluster://node.silent:7000,other.silent"])
def test_nothing_waits_long_for_the_resolver(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    silent, own = threading.Event(), socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda *each, **options: silent.wait(10) and own(*each, **options))
    started_at = time.monotonic()
    with connect(url, timeout=0.2) as client:
        for _ in range(2):
            with pytest.raises(ConnectionError, match=r"the resolver has not found|No master found") as caught:
                client.get("key")
            assert is_outage(caught.value)
    assert time.monotonic() - started_at < 5
    silent.set()
    wait_until(lambda: not _LookUp._under_way, what="the threads to end")
