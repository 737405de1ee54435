"""Several receiver processes on one port."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis
from support import Process, Receiver, Server, children, free_port, wait_until

HEADERS = {"Content-Type": "application/json"}


def body(user: str) -> bytes:
    return b'{"userID":"%s","callbackCommand":"callbackUserOfflineCommand","seq":1,"operationID":"op"}' % user.encode()


@pytest.fixture
def several(server: Server, tmp_path: Path, keep: Callable[[Process], Process]) -> Receiver:
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


def test_they_do_not_outlive_a_killed_parent(several: Receiver) -> None:
    before = children(several)
    several.kill()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in before))


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
