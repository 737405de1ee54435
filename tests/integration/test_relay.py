"""What a receiver reports about itself in Redis, what it keeps, and what it takes over."""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from support import Hasty, Process, Receiver, Server, children, free_port, on_one_server, wait_until
from topology import Flips, Watched

from receiver.journal.journal import Journal
from receiver.relay.relay import Relay
from shared import reports
from shared.reports import Report
from shared.settings import Settings, load

Keep = Callable[[Process], Process]
PLENTY = 1 << 30
ENCODED = b'["u","callbackUserOfflineCommand",1,"",0,"","op",99]'
HEADERS = {"Content-Type": "application/json"}


def body(user: str) -> bytes:
    return b'{"userID":"%s","callbackCommand":"callbackUserOfflineCommand","seq":1,"operationID":"op"}' % user.encode()


def reported(redis: Redis) -> list[Report]:
    found: Any = redis.hgetall("presence-receivers")
    return [reports.decode(field, text) for field, text in found.items()]


class InProcess:
    """A receiver's journal and relay, in this process: all have one host name and one process id."""

    def __init__(self, directory: Path, settings: Settings) -> None:
        self.journal = Journal(directory, PLENTY)
        assert self.journal.check() == ""
        self.relay = Relay(self.journal, settings)
        self.relay.start()

    def stop(self, seconds: float = 5) -> None:
        self.relay.stop(seconds)
        self.journal.close(keep_folder=not self.relay.signed_off)

    def die(self) -> None:
        """Ends as a killed process does: the kernel releases its lock, and its report stays."""
        self.relay._deadline = 0.0
        self.relay.stop(0)
        assert self.journal._writer.folder
        self.journal._writer.folder.release()


@pytest.fixture
def settings(server: Server) -> Settings:
    return load({"PRESENCE_REDIS_URL": server.url})


@on_one_server
def test_two_receivers_of_one_name_both_report(redis: Redis, settings: Settings, tmp_path: Path) -> None:
    first, second = InProcess(tmp_path / "a", settings), InProcess(tmp_path / "b", settings)
    try:
        found = wait_until(lambda: found if len(found := reported(redis)) == 2 else None)
        assert len({each.name for each in found}) == 1
        assert {each.id for each in found} == {first.journal.identity, second.journal.identity}
    finally:
        first.stop()
        assert [each.id for each in reported(redis)] == [second.journal.identity]
        second.stop()
    assert reported(redis) == []


@on_one_server
def test_the_rest_of_a_batch_is_waited_for_before_a_push(
    redis: Redis, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("receiver.relay.relay.GATHER_SECONDS", 0.5)  # time enough on any machine
    journal = Journal(tmp_path, PLENTY)
    relay = Relay(journal, settings)  # not started: its turns are taken here
    journal.append(ENCODED)
    relay.wake()
    rest = threading.Timer(0.05, journal.append, [ENCODED])
    rest.start()
    assert relay._turn() is False
    rest.join()
    (job_id,) = redis.lrange("rq:queue:presence", 0, -1)
    assert redis.hget(f"rq:job:{job_id.decode()}", "description") == b"2 events"


@on_one_server
def test_a_receiver_that_restarts_is_the_same_one(redis: Redis, settings: Settings, tmp_path: Path) -> None:
    first = InProcess(tmp_path, settings)
    (before,) = wait_until(lambda: reported(redis))
    first.die()
    second = InProcess(tmp_path, settings)
    after = wait_until(lambda: [each for each in reported(redis) if each.at_ms > before.at_ms])
    assert [each.id for each in after] == [before.id] == [each.id for each in reported(redis)]
    second.stop()
    assert list(tmp_path.iterdir()) == []


@on_one_server
def test_who_takes_a_journal_over_speaks_for_it_too(
    redis: Redis, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("receiver.relay.relay.ADOPT_SECONDS", 0.05)
    monkeypatch.setattr("receiver.relay.relay.PATIENCE_SECONDS", 0.05)
    first, second = InProcess(tmp_path, settings), InProcess(tmp_path, settings)
    wait_until(lambda: len(reported(redis)) == 2)
    first.die()
    wait_until(lambda: [each.id for each in reported(redis)] == [second.journal.identity])
    second.stop()


@on_one_server
def test_without_redis_a_receiver_that_stops_keeps_its_place(
    server: Server, settings: Settings, tmp_path: Path
) -> None:
    nobody = load({"PRESENCE_REDIS_URL": f"redis://127.0.0.1:{free_port()}"})
    first = InProcess(tmp_path, nobody)
    identity = first.journal.identity
    first.stop(0.3)
    second = InProcess(tmp_path, settings)
    assert second.journal.identity == identity
    second.stop()


@on_one_server
def test_what_cannot_be_read_holds_the_watermark_whatever_else_is_pushed(
    redis: Redis, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / "events-1-1-left"
    left.mkdir()
    (left / "00000001.log").mkdir()  # opens, and cannot be read
    monkeypatch.setattr("receiver.relay.relay.ADOPT_SECONDS", 0.05)
    monkeypatch.setattr("receiver.relay.relay.PATIENCE_SECONDS", 0)
    monkeypatch.setattr("receiver.relay.relay.IDLE_SECONDS", 0.05)
    monkeypatch.setattr("receiver.relay.reporter.REPORT_SECONDS", 0.05)
    monkeypatch.setattr("receiver.journal.journal.UNREADABLE_SECONDS", 0.2)
    receiver = InProcess(tmp_path, settings)
    wait_until(lambda: any(each.unreadable for each in reported(redis)))
    for number in range(3):
        receiver.journal.append(b"[%d]" % number)
        receiver.relay.wake()
        pushed = receiver.relay.pushes_ok
        wait_until(lambda pushed=pushed: receiver.relay.pushes_ok > pushed)  # type: ignore[misc]
        (report,) = reported(redis)
        assert (report.watermark_ms, report.unreadable) == (0, 1)
    (left / "00000001.log").rmdir()
    wait_until(lambda: all(each.watermark_ms and not each.unreadable for each in reported(redis)))
    receiver.stop()


@on_one_server
def test_processes_that_restart_in_an_outage_all_have_their_room(server: Server, tmp_path: Path, keep: Keep) -> None:
    """Each has used more than half of its limit, so if one counted what it took over, it would refuse events."""
    url, limit = f"redis://127.0.0.1:{free_port()}", 66_000
    receiver = Receiver(tmp_path, url, processes="2", journal_max_bytes=str(limit))
    keep(receiver)
    wait_until(lambda: receiver.readiness()[0] == 200)

    def folders() -> dict[str, int]:
        found = [folder for folder in (tmp_path / "journal").iterdir() if folder.is_dir()]
        return {folder.name: sum(path.stat().st_size for path in folder.iterdir()) for folder in found}

    while min(folders().values()) < 36_000:  # each on a new connection, which the kernel deals out
        assert receiver.post("/", HEADERS, body("u" * 256))[0] == 200
    before = folders()
    assert sum(before.values()) > limit
    processes = children(receiver)
    receiver.kill()
    for process in processes:
        os.kill(process, signal.SIGKILL)
    wait_until(lambda: not any(Path(f"/proc/{process}").exists() for process in processes))
    receiver.start()
    receiver.wait()
    wait_until(lambda: receiver.readiness()[1]["journal_bytes"] == sum(before.values()))
    assert receiver.readiness()[0] == 200
    assert folders() == before


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    watched = Watched(tmp_path)
    yield watched
    watched.kill()


def test_without_sentinels_what_was_pushed_leaves_the_journal_later_and_is_shown_meanwhile(
    watched: Watched, tmp_path: Path, keep: Keep
) -> None:
    window = "relay.replay_window"
    limits = {f"{window}.SETTLE_SECONDS": 0.2, f"{window}.UNCONFIRMED_SECONDS": 4, f"{window}.PAUSE_SECONDS": 0.1}
    receiver = Hasty(tmp_path, watched.url, limits)
    keep(receiver)
    flips = Flips(receiver)
    flips.go_on(0.2)
    for sentinel in watched.sentinels:
        sentinel.signal(signal.SIGKILL)
    flips.go_on(0.5)
    flips.stop()
    state = wait_until(lambda: state if (state := receiver.readiness()[1])["kept_reason"] else None)
    assert "no Sentinel can be asked" in state["kept_reason"]
    assert state["kept_events"] > 0
    assert state["kept_bytes"] > 0
    client = watched.primary.client
    (report,) = wait_until(lambda: [each for each in reported(client) if each.kept_reason])
    assert report.kept_bytes > 0
    state = wait_until(lambda: state if not (state := receiver.readiness()[1])["kept_events"] else None)
    assert (state["kept_reason"], state["kept_bytes"], state["journal_events"]) == ("", 0, 0)
    wait_until(lambda: not list((tmp_path / "journal").rglob("*.log")))
    jobs = sum(json.loads(job.get(b"meta", b"{}"))["events"] for job in map(client.hgetall, client.keys("rq:job:*")))
    assert jobs >= flips.accepted
