"""Several receiver processes on one port."""

import asyncio
import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import pytest
from hostile import WHOLE
from redis import Redis
from support import Process, Receiver, Server, children, free_port, gone, wait_until

from receiver.processes import Place

Keep = Callable[[Process], Process]
HEADERS = {"Content-Type": "application/json"}


def body(user: str) -> bytes:
    return b'{"userID":"%s","callbackCommand":"callbackUserOfflineCommand","seq":1,"operationID":"op"}' % user.encode()


@pytest.fixture
def several(server: Server, tmp_path: Path, keep: Keep) -> Receiver:
    receiver = Receiver(tmp_path, server.url, processes="3")
    keep(receiver)
    wait_until(lambda: receiver.readiness()[0] == 200)
    return receiver


def test_all_take_callbacks_and_one_page_answers_for_all(several: Receiver, redis: Redis, tmp_path: Path) -> None:
    assert several.readiness()[1]["processes"] == 3
    assert len(list((tmp_path / "journal").iterdir())) == 3
    for number in range(60):  # each on a new connection, which the kernel deals out
        assert several.post("/", HEADERS, body(f"u{number}"))[0] == 200
    wait_until(lambda: redis.llen("rq:queue:presence") > 0)
    used = [folder for folder in (tmp_path / "journal").iterdir() if list(folder.glob("*.log"))]
    assert len(used) > 1
    wait_until(lambda: several.readiness()[1]["journal_events"] == 0)
    assert several.readiness()[1]["redis"] == "up"


def test_one_that_dies_is_replaced_and_its_journal_taken_over(several: Receiver, worker: Process, redis: Redis) -> None:
    before = children(several)
    for number in range(30):
        assert several.post("/", HEADERS, body(f"u{number}"))[0] == 200
    os.kill(min(before), signal.SIGKILL)
    wait_until(lambda: len(children(several)) == 3 and children(several) != before)
    wait_until(lambda: several.readiness()[0] == 200)
    wait_until(lambda: all(redis.exists(f"presence:u{number}") for number in range(30)), 30)


def test_all_stop_with_their_parent(several: Receiver) -> None:
    before = children(several)
    assert len(before) == 3
    assert several.stop() == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in before)
    assert several.text().count("stopped: 0 events") == 3
    assert "does not answer" not in several.text()


def test_whoever_asks_while_a_process_ends_gets_no_answer_and_no_error() -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        place = Place([], [])
        process = await place._start()
        place._writer.close()  # and there is a moment before the place is empty
        await asyncio.sleep(0.1)
        assert await place.ask() is None
        process.kill()
        await process.wait()

    uvloop.run(main())


def test_they_do_not_outlive_a_killed_parent(several: Receiver) -> None:
    before = children(several)
    several.popen.kill()
    wait_until(lambda: all(map(gone, before)))


def test_a_port_in_use_stops_all_of_them(server: Server, tmp_path: Path) -> None:
    import sys

    environment = {
        "PRESENCE_PROCESSES": "2",
        "PRESENCE_HOST": "127.0.0.1",
        "PRESENCE_PORT": str(server.port),
        "PRESENCE_ADMIN_PORT": str(free_port()),
    }
    process = Process([sys.executable, "-m", "receiver"], environment, tmp_path, "receiver")
    assert process.popen.wait(20) == 1
    assert "PRESENCE_PORT: cannot listen on" in process.text()
    assert "Traceback" not in process.text()


def health(port: int, within: float = 1.9) -> str:
    try:
        with urlopen(f"http://127.0.0.1:{port}/healthz", timeout=within) as answer:
            return str(json.load(answer)["status"])
    except HTTPError as error:
        return str(json.load(error)["status"])


def test_the_page_can_be_asked_at_any_moment_of_a_start(server: Server, tmp_path: Path, keep: Keep) -> None:
    import sys

    port = free_port()
    environment = {"PRESENCE_PROCESSES": "8", "PRESENCE_HOST": "127.0.0.1", "PRESENCE_PORT": str(free_port())}
    environment |= {"PRESENCE_ADMIN_PORT": str(port), "PRESENCE_REDIS_URL": server.url}
    process = Process([sys.executable, "-m", "receiver"], environment, tmp_path, "receiver")
    keep(process)
    said = set()

    def is_alive() -> bool:
        with suppress(URLError):  # it does not listen yet
            said.add(health(port, 10))  # eight programs start: the machine is busy
        return "alive" in said

    wait_until(is_alive)
    assert all(re.fullmatch(r"alive|((^|; )(process \d+ is starting|a process starts))+", each) for each in said)
    assert "Traceback" not in process.text()


def test_who_comes_while_one_is_frozen_is_served_and_the_frozen_one_is_named_and_replaced(
    several: Receiver, redis: Redis, worker: Process
) -> None:
    for number in range(30):
        assert several.post("/", HEADERS, body(f"u{number}"))[0] == 200
    before = children(several)
    frozen = min(before)
    os.kill(frozen, signal.SIGSTOP)
    assert health(several.admin_port) == f"process {frozen} does not answer"
    assert several.readiness()[1]["trouble"] == f"process {frozen} does not answer"
    for number in range(30, 90):
        began = time.monotonic()
        assert several.post("/", HEADERS, body(f"u{number}"))[0] == 200
        assert time.monotonic() - began < 2
    wait_until(lambda: f"receiver process {frozen} is frozen, and is killed" in several.text())
    assert several.text().count(f"receiver process {frozen} does not answer") == 1
    wait_until(lambda: len(children(several)) == 3 and frozen not in children(several))
    wait_until(lambda: several.readiness()[0] == 200 and health(several.admin_port) == "alive")
    wait_until(lambda: all(redis.exists(f"presence:u{number}") for number in range(90)), 30)


def test_one_that_pauses_for_a_moment_is_not_killed(several: Receiver) -> None:
    before = children(several)
    os.kill(min(before), signal.SIGSTOP)
    wait_until(lambda: health(several.admin_port) == f"process {min(before)} does not answer")
    os.kill(min(before), signal.SIGCONT)
    wait_until(lambda: health(several.admin_port) == "alive")
    assert children(several) == before


def test_kept_connections_spread_over_all_of_them(server: Server, tmp_path: Path, keep: Keep) -> None:
    receiver = Receiver(tmp_path, server.url, processes="4")
    keep(receiver)
    wait_until(lambda: receiver.readiness()[0] == 200)
    before = {pid: sockets(pid) for pid in children(receiver)}
    with ExitStack() as kept:
        for _ in range(64):
            connection = kept.enter_context(socket.create_connection(("127.0.0.1", receiver.port), 10))
            connection.sendall(WHOLE)
            assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
        assert all(sockets(pid) - before[pid] >= 4 for pid in before)


def sockets(pid: int) -> int:
    links = (link.readlink() for link in Path(f"/proc/{pid}/fd").iterdir())
    return sum(str(link).startswith("socket:") for link in links)


def test_they_need_no_temporary_directory(
    server: Server, tmp_path: Path, keep: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / ("x" * 124)  # too long for the path of a Unix socket
    directory.mkdir()
    monkeypatch.setenv("TMPDIR", str(directory))
    receiver = Receiver(tmp_path, server.url, processes="2")
    keep(receiver)
    wait_until(lambda: receiver.readiness()[0] == 200)
    assert not list(directory.iterdir())


def test_a_frozen_one_does_not_keep_them_from_stopping(several: Receiver) -> None:
    os.kill(min(children(several)), signal.SIGSTOP)
    assert several.stop() == 0
