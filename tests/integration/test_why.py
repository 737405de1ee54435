"""`presence why`, against real servers: what it finds about a user, and what it says if it could not look."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from click.testing import Result as Ran
from redis import Redis
from rq.results import Result
from support import Process, Server, on_one_server

from shared.cli import cli
from shared.events import Event, encode
from shared.queue import BatchMeta, enqueue_alone, enqueue_encoded, open_queue
from shared.reports import Report
from shared.reports import encode as encode_report
from shared.settings import Settings
from shared.why import scans
from worker.store.store import Store

pytestmark = on_one_server
Run = Callable[..., Ran]
ON, OFF = "callbackAfterUserOnlineCommand", "callbackAfterUserOfflineCommand"
ODD = ["a/b", "..", "%2F", "a?b#c", "__proto__", "<img src=x onerror=alert(1)>", "x\u202ey\x1b[2K", "--all", "ü\n", "-"]
NOW = time.time_ns() // 1_000_000


@pytest.fixture
def store(redis: Redis) -> Store:
    return Store(redis, Settings())


@pytest.fixture
def run(server: Server) -> Run:
    def run_(user: str, *options: str, **environment: str) -> Ran:
        environment = {"PRESENCE_REDIS_URL": server.url, **environment}
        return CliRunner().invoke(cli, ["why", *options, "--", user], env=environment)

    return run_


@pytest.fixture
def ask(run: Run) -> Callable[..., dict[str, Any]]:
    """The command's JSON."""

    def ask_(user: str, exit_code: int = 0, **environment: str) -> dict[str, Any]:
        result = run(user, "--json", **environment)
        assert result.exit_code == exit_code, result.output
        (line,) = result.stdout.splitlines()
        said: dict[str, Any] = json.loads(line)
        return said

    return ask_


Ask = Callable[..., dict[str, Any]]


def web(kind: str, seq: int, user: str = "alice", **fields: Any) -> Event:
    return Event(user, kind, seq, "", 5, "Web", f"op{seq}", seq, f"id{seq}")._replace(**fields)  # type: ignore[arg-type]


def test_a_user_who_came_and_left(store: Store, run: Run, ask: Ask) -> None:
    came, left = web(ON, NOW - 9000), web(OFF, NOW - 5000)
    for event in (came, left, left, web(ON, NOW - 7000)):
        store.apply([event])
    said = ask("alice")
    assert (said["status"], said["since"]) == ("offline", NOW - 5000)
    assert f"(seq {NOW - 5000}, operationID op{NOW - 5000})" in said["reason"]
    assert [(each["status"], each["operation_id"]) for each in said["changes"]] == [
        ("offline", left.operation_id),
        ("online", came.operation_id),
    ]
    assert [(each["outcome"], each["seq"]) for each in said["ignored"]] == [
        ("stale", str(NOW - 7000)),
        ("duplicate", str(NOW - 5000)),
    ]
    assert "the offline event of that platform is newer" in said["ignored"][0]["against"]
    assert all(each["whole"] for each in said["looked_at"].values())
    text = run("alice").output.splitlines()
    assert text[0] == said["reason"].replace("for 5 s", text[0].split(",")[0].removeprefix("alice has been offline "))
    assert {line[:14].strip() for line in text[3:]} >= {"sessions", "batches", "newest event", "changes", "no effect"}


def test_of_many_sessions_some_are_shown(store: Store, run: Run, ask: Ask) -> None:
    for number in range(60):
        store.apply([web(ON, NOW + number, conn_id=f"c{number}")])
    for number in range(40):
        store.apply([web(OFF, NOW + 1000 + number, conn_id=f"c{number}")])
    sessions = ask("alice")["sessions"]
    assert [each["online"] for each in sessions] == [True] * 20 + [False] * 32
    text = run("alice").output
    assert "20 sessions are online, connection c59 (Web), " in text
    assert "and 10 more that are online (--json has all)" in text
    assert "and 27 more that are closed (--json has all)" in text
    assert f"closed connections up to seq {NOW + 1007} are forgotten" in text


def test_leases_are_shown_and_known_by_what_workers_have_written(redis: Redis, ask: Ask) -> None:
    store = Store(redis, Settings(online_lease_seconds=1800))
    store.apply([web(ON, NOW)])
    for settings in ({"PRESENCE_ONLINE_LEASE_SECONDS": "1800"}, {}):
        (session,) = ask("alice", **settings)["sessions"]
        assert (session["lease_began"], session["lease_ends"]) == (NOW, NOW + 1_800_000)


def test_a_user_who_was_never_heard_of(store: Store, run: Run, ask: Ask) -> None:
    assert "No event of any user was ever applied" in run("alice").output
    store.apply([web(ON, NOW, "Alice")])
    said = ask("alice ")
    assert (said["status"], said["since"], said["similar"]) == ("unknown", None, [])
    assert ask("alice")["similar"] == ["Alice"]
    assert "'Alice'" in run("alice").output


def test_who_was_forgotten(store: Store, server: Server, ask: Ask) -> None:
    store.apply([web(ON, NOW)])
    CliRunner().invoke(cli, ["forget", "alice"], env={"PRESENCE_REDIS_URL": server.url})
    assert "somebody ran `presence forget`" in ask("alice")["reason"]


def test_a_key_of_another_type_is_said(redis: Redis, run: Run, ask: Ask) -> None:
    redis.set("presence:alice", "x")
    assert "the key presence:alice is a string, not a hash" in ask("alice", exit_code=1)["reason"]
    assert run("alice").exit_code == 1


@pytest.mark.parametrize("user", ODD)
def test_any_id_is_found_and_shown_as_text(user: str, store: Store, redis: Redis, run: Run, ask: Ask) -> None:
    applied = web(ON, NOW, user, conn_id=f"c{user}", operation_id=user)
    store.apply([applied, applied])
    enqueue_encoded(open_queue(redis, Settings()), [encode(web(OFF, NOW + 1, user))], NOW)
    said = ask(user)
    assert (said["user_id"], said["status"]) == (user, "online")
    assert [each["user_id"] for each in said["changes"]] == [user]
    assert [each["outcome"] for each in said["ignored"]] == ["duplicate"]
    assert [each["seq"] for each in said["waiting"]] == [str(NOW + 1)]
    assert all(line.isprintable() for line in run(user).output.splitlines())


def test_an_id_that_is_no_utf_8_is_nobodys(run: Run, ask: Ask) -> None:
    assert ask("\udcff")["status"] == "unknown"
    assert r"\udcff" in run("\udcff").output


def test_what_waits_is_tried_again_and_has_failed(redis: Redis, run: Run, ask: Ask) -> None:
    queue, odd = open_queue(redis, Settings()), "ü\u202e"  # RQ's own JSON escapes what ours does not
    encoded = [encode(web(ON, 1, odd)), encode(web(ON, 2, "bob")), encode(web(OFF, 3, odd))]
    waiting = enqueue_encoded(queue, encoded, NOW)
    running = enqueue_encoded(queue, [encode(web(ON, 4, odd))], NOW)
    redis.lrem(queue.key, 1, running.id)
    redis.zadd(queue.started_job_registry.key, {f"{running.id}:execution": 1})
    retrying, failed = (enqueue_alone(queue, [odd, *web(ON, seq)[1:]], str(seq), BatchMeta(7), "") for seq in (5, 6))
    for job in (retrying, failed):
        queue.remove(job)
        Result.create_failure(job, -1, exc_string=f"Traceback\n\nworker.store.store.Poison: no hash {job.id}\n")
    redis.zadd(queue.scheduled_job_registry.key, {retrying.id: NOW // 1000 + 60})
    redis.zadd(queue.failed_job_registry.key, {failed.id: -1})
    said = ask(odd)
    assert [(each["place"], each["seq"], each["job_id"], each["error"]) for each in said["waiting"]] == [
        ("failed", "6", failed.id, "no hash 6"),
        ("retrying", "5", retrying.id, "no hash 5"),
        ("running", "4", running.id, ""),
        ("queued", "1", waiting.id, ""),
        ("queued", "3", waiting.id, ""),
    ]
    assert said["waiting"][1]["next_at"] == (NOW // 1000 + 60) * 1000
    assert ": 5 events wait to be applied" in said["reason"]
    assert "No worker is alive" in run(odd).output


def test_jobs_that_are_not_ours_are_passed_over(redis: Redis, ask: Ask) -> None:
    queue = open_queue(redis, Settings())
    enqueue_alone(queue, ["alice", "odd"], "of_another_release", BatchMeta(7), "")
    for name, data in (("pickle", b'\x80\x04"alice"'), ("text", b'"alice"'), ("list", b'[1,2,"alice"]')):
        redis.rpush(queue.key, name)
        redis.hset(f"rq:job:{name}", "data", data)
    redis.rpush(queue.key, "gone")
    assert [(each["command"], each["seq"]) for each in ask("alice")["waiting"]] == [("odd", "0")]


def test_what_waits_in_a_journal_is_named(redis: Redis, ask: Ask) -> None:
    for name, events in (("vm:7", 3), ("vm:8", 0)):
        report = Report(name, NOW, NOW - 9000, events, 99, id=name)
        redis.hset("presence-receivers", name, encode_report(report))
    said = ask("alice")
    assert said["journals"] == [{"receiver": "vm:7", "events": 3, "since_ms": NOW - 9000}]


def test_it_says_how_far_it_looked(store: Store, redis: Redis, run: Run, ask: Ask, monkeypatch: Any) -> None:
    monkeypatch.setattr(scans, "_ENTRIES", 10)
    monkeypatch.setattr(scans, "ENTRIES_MOST", 30)
    monkeypatch.setattr(scans, "JOBS_MOST", 3)
    store.apply([web(ON, NOW)])
    crowd = [web(ON, NOW, f"u{number}") for number in range(50)]
    store.apply(crowd)
    store.apply(crowd)
    for number in range(5):
        enqueue_encoded(open_queue(redis, Settings()), [encode(web(ON, NOW, "alice" if number == 4 else "bob"))], NOW)
    said = ask("alice")
    assert (said["changes"], said["ignored"], said["waiting"]) == ([], [], [])
    for name, most in (("changes", 30), ("ignored", 30), ("waiting", 3)):
        assert said["looked_at"][name]["count"] == most
        assert not said["looked_at"][name]["whole"]
    assert abs(said["looked_at"]["changes"]["back_to"] - NOW) < 600_000
    text = run("alice").output
    assert "none among the newest 30 of all users" in text
    assert "only 3 batches of the queue were looked at" in text


def test_ten_changes_are_enough(store: Store, ask: Ask) -> None:
    for number in range(20):
        store.apply([web((ON, OFF)[number % 2], NOW + number)])
    changes = ask("alice")["changes"]
    assert [each["seq"] for each in changes] == [str(NOW + number) for number in range(19, 9, -1)]


def test_without_the_queue_it_says_what_presence_knows(store: Store, run: Run, ask: Ask) -> None:
    store.apply([web(ON, NOW)])
    away = {"PRESENCE_QUEUE_URL": "redis://:geheim@127.0.0.1:1/0"}
    said = ask("alice", exit_code=1, **away)
    assert said["status"] == "online"
    assert "the queue's Redis, redis://127.0.0.1:1/0: " in said["troubles"][0]
    assert not said["looked_at"]["waiting"]["whole"]
    assert "No worker is alive" not in run("alice", **away).output
    assert "geheim" not in run("alice", **away).output


def test_without_presence_it_could_not(run: Run) -> None:
    result = run("alice", PRESENCE_REDIS_URL="redis://127.0.0.1:1/0")
    assert result.exit_code == 1
    assert result.stdout == ""


def test_a_frozen_redis_does_not_hold_it_up_for_long(
    run: Run, tmp_path: Path, keep: Callable[[Process], Process]
) -> None:
    frozen = Server(tmp_path / "server")
    keep(frozen)
    frozen.signal(signal.SIGSTOP)
    started = time.monotonic()
    assert run("alice", PRESENCE_REDIS_URL=frozen.url).exit_code == 1
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("key", ["presence-changes", "presence-ignored", "presence-leases", "rq:failed:presence"])
def test_a_key_of_a_wrong_type_costs_only_what_it_holds(store: Store, redis: Redis, ask: Ask, key: str) -> None:
    store.apply([web(ON, NOW)])
    redis.delete(key)
    redis.set(key, "in the way")
    said = ask("alice", exit_code=1)
    assert said["status"] == "online"
    assert any("WRONGTYPE" in trouble for trouble in said["troubles"])
