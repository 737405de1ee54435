"""`presence reconcile`, beside an OpenIM whose gateways die and whose callbacks are lost."""

import json
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import openim as fakes
import pytest
from aiohttp import web
from beside import MINUTE, PIDS, World, users
from click.testing import CliRunner
from redis import Redis
from support import Server, free_port, on_one_server

from shared.cli import cli
from shared.events import Event
from shared.observe.metrics import of_snapshot
from shared.observe.poller import Poller
from shared.openim import calls
from shared.settings import Settings
from shared.truth import comparison
from worker.store.store import Store

pytestmark = on_one_server

NOBODY_THERE = "nobody known to be at the gateway 10.0.0.2 (process 8) is in OpenIM's answer"


@pytest.fixture
def world(redis: Redis, server: Server) -> Iterator[World]:
    with fakes.serving(*PIDS) as openim:
        yield World(redis, server.url, openim)
    for key in redis.scan_iter("*"):
        assert fakes.TOKEN.encode() not in (redis.dump(key) or b""), key


def counts(compared: int, **more: int) -> dict[str, int]:
    return {"compared": compared, "ghost": 0, "missing": 0, "platforms": 0, "unknown": 0, "skipped": 0, **more}


@pytest.fixture
def at_two_gateways(world: World) -> World:
    world.come(users("a", 30), gateway=0)
    world.come(users("b", 30), gateway=1)
    world.call_back(minutes_ago=2)
    return world


def test_nothing_differs(at_two_gateways: World) -> None:
    assert at_two_gateways.reconcile("--online") == [counts(60)]
    assert at_two_gateways.reconcile("a1", "nobody", "a1") == [counts(2)]
    assert "all as in OpenIM" in at_two_gateways.run("-", input="a1\r\n\r\nb1\n").output


def test_what_was_lost_while_receivers_were_away_is_put_right(at_two_gateways: World) -> None:
    world = at_two_gateways
    world.go(users("a", 30)[10:20])
    world.come(users("c", 10), platform_id=5, gateway=1)
    world.come(["a20"], platform_id=2, gateway=1)
    world.call_back(lost=True)
    assert world.ours() != world.truth()
    [ghost, last] = world.reconcile("a10", "--dry-run", code=1)
    assert ghost == {
        "user_id": "a10",
        "kind": "ghost",
        "ours": [1],
        "openim": [],
        "action": "none",
        "why": "witnessed",
    }
    assert last == counts(1, ghost=1)
    world.openim.users = [*users("a", 30), *users("c", 10)]
    *found, last = world.reconcile("--all")
    assert last == counts(70, ghost=10, missing=10, platforms=1)
    assert {each["action"] for each in found if each["kind"] == "ghost"} == {"closed"}
    assert {each["action"] for each in found if each["kind"] != "ghost"} == {"opened"}
    assert {"user_id": "a20", "kind": "platforms", "ours": [1], "openim": [1, 2]}.items() <= next(
        each for each in found if each["user_id"] == "a20"
    ).items()
    assert world.ours() == world.truth()
    entry = world.redis.xrevrange("presence-changes", count=1)[0][1]
    assert entry[b"command"] in (b"reconciled_online", b"reconciled_offline")
    assert entry[b"operation_id"] == b""
    assert world.reconcile("--all") == [counts(70)]


def test_a_killed_gateway_leaves_ghosts_until_it_is_known_to_be_gone(at_two_gateways: World) -> None:
    world = at_two_gateways
    world.openim.kill(1)
    *found, last = world.reconcile("--online", code=1)
    assert last == counts(60, unknown=30)
    assert {(each["kind"], each["action"], each["why"]) for each in found} == {("ghost", "none", NOBODY_THERE)}
    assert len(world.ours()) == 60
    world.openim.forget_record()
    *found, last = world.reconcile("--online")
    assert (last, {each["why"] for each in found}) == (counts(60, ghost=30), {"record"})
    assert world.ours() == world.truth() == {user: [1] for user in users("a", 30)}


def test_a_gateway_that_fell_silent_is_gone(world: World) -> None:
    world.come(users("b", 30), gateway=1)
    world.call_back(minutes_ago=22)
    world.come(users("a", 30), gateway=0)
    world.call_back()
    world.openim.kill(1)
    *found, last = world.reconcile("--online")
    assert (last, {each["why"] for each in found}) == (counts(60, ghost=30), {"witnessed"})
    assert world.ours() == world.truth()


def test_a_gateway_that_started_again_has_none_of_its_users(at_two_gateways: World) -> None:
    world = at_two_gateways
    world.openim.restart(1, pid=9)
    world.come(users("b", 3), gateway=1)
    world.call_back(minutes_ago=1)
    *found, last = world.reconcile("--online")
    assert (last, {each["why"] for each in found}) == (counts(60, ghost=27), {"witnessed"})
    assert world.ours() == world.truth()


def test_a_gateway_that_the_api_does_not_reach_loses_nobody(at_two_gateways: World) -> None:
    world = at_two_gateways
    world.openim.away.add(1)
    assert world.reconcile("--online", code=1)[-1] == counts(60, unknown=30)
    world.work()
    assert world.ours() == world.truth()


def test_an_answer_that_openim_cannot_make_closes_nobody(world: World) -> None:
    world.come(users("a", 200))
    world.call_back()
    for connections in world.openim.im._gateways[0].connections.values():
        connections.extend(connections * 60)
    assert world.reconcile("--online", code=1)[-1] == counts(200, unknown=200)
    assert world.ours() == world.truth()


def test_a_new_installation_is_filled(world: World) -> None:
    world.come(users("a", 300), gateway=0)
    world.come(users("b", 150), platform_id=5, gateway=1)
    world.call_back(lost=True)
    world.openim.users = [*users("a", 300), *users("b", 150), *users("offline", 1000)]
    assert world.reconcile("--all")[-1] == counts(1450, missing=450)
    assert world.ours() == world.truth()


def test_who_was_heard_of_just_now_is_left(at_two_gateways: World) -> None:
    world = at_two_gateways
    world.go(users("a", 2))
    world.call_back(lost=True)
    world.go(["a2"])
    world.come(["a2"])
    world.call_back(minutes_ago=0)
    world.openim.im.end("a2", 1)
    world.call_back(lost=True)
    assert world.reconcile("--online")[-1] == counts(60, ghost=2, skipped=1)


# Up to 3.7 sessions are connections, and nothing names a gateway.


def old_event(kind: str, user: str, conn_id: str, at: int) -> Event:
    return Event(user, f"callbackUser{kind}Command", at, conn_id, 1, "IOS", "op", at)  # type: ignore[arg-type]


@pytest.fixture
def old(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(comparison, "AGAIN_SECONDS", 0.1)
    world.openim.is_old = True
    return world


def connect(world: World, names: list[str], *, lost: bool = False) -> None:
    world.come(names)
    at = time.time_ns() // 1_000_000 - MINUTE
    events = [old_event("Online", name, fakes.conn_id(world.connections[name][-1]), at) for name in names]
    Store(world.redis, Settings()).apply([] if lost else events)


def test_connections_are_put_right_one_by_one(old: World) -> None:
    connect(old, users("a", 100))
    old.go(users("a", 5))
    connect(old, ["a7", "new"], lost=True)
    ended = old.connections["a7"].pop(0)
    old.openim.im.close(ended)
    old.openim.users = [*users("a", 100), "new"]
    *found, last = old.reconcile("--all")
    assert last == counts(101, ghost=5, missing=1, platforms=1)
    assert {each["why"] for each in found if each["kind"] == "ghost"} == {"twice"}
    assert old.ours() == old.truth()
    assert old.reconcile("--all") == [counts(101)]
    # Whatever opened it, its own callback closes it.
    end = old_event("Offline", "a7", fakes.conn_id(old.connections["a7"][0]), time.time_ns() // 1_000_000)
    Store(old.redis, Settings()).apply([end])
    assert "a7" not in old.ours()


def test_half_of_everybody_does_not_leave_at_once_unless_forced(old: World) -> None:
    connect(old, users("a", 120))
    old.openim.kill(0)
    connect(old, ["missing"], lost=True)
    *found, last = old.reconcile("--online", code=1)
    assert last == counts(120, ghost=120)
    assert {(each["action"], each["why"]) for each in found} == {("none", comparison.TOO_MANY)}
    assert len(old.ours()) == 120
    *found, last = old.reconcile("--online", "--force")
    assert {(each["action"], each["why"]) for each in found} == {("closed", "forced")}
    assert not old.ours()


def test_who_was_opened_counts_as_put_right_even_if_closing_is_blocked(old: World) -> None:
    connect(old, users("a", 120))
    old.openim.restart(0, pid=9)
    connect(old, ["a7"], lost=True)
    *found, last = old.reconcile("--online", code=1)
    assert last == counts(120, ghost=119, platforms=1)
    assert {(each["user_id"], each["action"]) for each in found if each["kind"] == "platforms"} == {("a7", "opened")}
    put_right = {name: value for name, value in metrics(old).items() if "presence_reconciled_total" in name}
    assert put_right == {
        "presence_reconciled_total ghost": 0,
        "presence_reconciled_total missing": 0,
        "presence_reconciled_total platforms": 1,
    }


def test_who_is_back_at_the_second_question_stays(old: World, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(old, users("a", 100))
    old.go(["a1", "a2"])
    ask_again = comparison.Comparison._ask_again

    async def later(*arguments: Any) -> Any:
        connect(old, ["a1"])
        return await ask_again(*arguments)

    monkeypatch.setattr(comparison.Comparison, "_ask_again", later)
    assert old.reconcile("--online")[-1] == counts(100, ghost=1, platforms=1)  # her old connection is closed
    assert "a1" in old.ours()
    assert old.ours() == old.truth()


# OpenIM cannot be asked.


@pytest.mark.parametrize(
    ("switches", "words"),
    [
        ({"secret": "another"}, "PRESENCE_OPENIM_SECRET is not its secret"),
        ({"admins": ("root",)}, "PRESENCE_OPENIM_ADMIN is not one of its admins"),
        ({"limited": 99, "retry_after": "60"}, "limits how often it may be asked"),
        ({"seconds": 0.5}, "does not answer within"),
        ({"raw": lambda _: web.Response(text=fakes.TOKEN)}, "in a form that we do not know"),
        ({"raw": lambda _: web.Response(status=502, text=fakes.TOKEN)}, "with HTTP 502"),
        ({"url": f"http://127.0.0.1:{free_port()}"}, "cannot be reached: Connection refused"),
    ],
)
def test_nothing_changes_while_openim_cannot_be_asked(
    at_two_gateways: World, monkeypatch: pytest.MonkeyPatch, switches: dict[str, Any], words: str
) -> None:
    if "seconds" in switches:
        monkeypatch.setattr(calls, "CALL_SECONDS", 0.2)
    world = at_two_gateways
    world.go(users("a", 5))
    world.call_back(lost=True)
    for name, value in switches.items():
        setattr(world.openim, name, value)
    before = world.ours()
    result = world.run("--online")
    assert (result.exit_code, result.stdout) == (3, "")
    assert re.fullmatch(f"presence: OpenIM at http://127.0.0.1:[0-9]+ .*{words}.*\n", result.stderr)
    assert fakes.SECRET not in result.stderr
    assert fakes.TOKEN not in result.stderr
    world.work()
    assert world.ours() == before


def test_one_question_that_fails_leaves_those_it_was_about(world: World) -> None:
    world.come(users("a", 450))
    world.call_back()
    fails: Iterator[bool]

    def raw(path: str) -> web.Response | None:
        return web.Response(status=500) if path.endswith("token_detail") and next(fails, False) else None

    world.openim.raw = raw
    fails = iter([False, True])
    *found, last = world.reconcile("--online", code=1)
    assert last == counts(250, unknown=200)
    assert not found
    fails = iter([False, *[True] * 9])
    result = world.run("--online", "--json")
    assert (result.exit_code, result.stdout) == (1, json.dumps(counts(200, unknown=250)) + "\n")


# What is left to see of it.


def status(world: World, *arguments: str) -> str:
    environment = {"PRESENCE_REDIS_URL": world.url, "PRESENCE_ADMIN_PORT": "0"}
    return CliRunner().invoke(cli, ["status", *arguments], env=environment).output


def metrics(world: World) -> dict[str, float]:
    snapshot = Poller(Settings(redis_url=world.url)).poll()
    samples = [sample for family in of_snapshot(snapshot) for sample in family.samples]
    return {" ".join([sample.name, *sample.labels.values()]): sample.value for sample in samples}


def test_the_last_whole_comparison_shows_in_status_and_metrics(at_two_gateways: World) -> None:
    world = at_two_gateways
    assert not [name for name in metrics(world) if "drift" in name or "reconcile" in name]
    world.go(users("a", 30)[10:13])
    world.call_back(lost=True)
    world.openim.kill(1)
    world.reconcile("a10")
    assert not json.loads(status(world, "--json"))["reconcile"]["compared_at_ms"]  # one user is not everybody
    world.reconcile("--online", code=1)
    shown = metrics(world)
    assert [shown[f"presence_drift_users {kind}"] for kind in ("ghost", "missing", "platforms")] == [2, 0, 0]
    assert [shown[f"presence_reconciled_total {kind}"] for kind in ("ghost", "missing", "platforms")] == [3, 0, 0]
    assert 0 <= shown["presence_reconcile_age_seconds"] < 60
    told = r"compared 59 users \d+ s ago: 2 ghosts, 0 missing, 0 on other platforms, 30 unknown; 3 put right so far"
    assert re.search(told, status(world))


def test_that_openim_cannot_be_asked_shows_until_it_can(at_two_gateways: World) -> None:
    world = at_two_gateways
    world.openim.secret = "another"
    world.run("a1")
    assert "OpenIM could not be asked who is online: OpenIM at http://127.0.0.1" in status(world)
    assert "PRESENCE_OPENIM_SECRET is not its secret" in status(world)
    world.openim.secret = fakes.SECRET
    world.run("a1")
    assert "could not be asked" not in status(world)


# The command.


def test_it_says_what_it_did(at_two_gateways: World) -> None:
    world = at_two_gateways
    world.go(["a1"])
    world.come(["new"], platform_id=5)
    world.call_back(lost=True)
    lines = world.run("a1", "a2", "new").output.splitlines()
    assert lines[:2] == [
        "a1                       ghost     closed we: IOS, OpenIM: - (witnessed)",
        "new                      missing   opened we: -, OpenIM: Web (witnessed)",
    ]
    assert re.fullmatch(
        r"compared 3 users with OpenIM in \d+\.\d s: 1 ghost, 1 missing, 0 on other platforms; all put right", lines[2]
    )


def test_a_bar_is_on_a_terminal_and_not_in_the_output(at_two_gateways: World) -> None:
    ours, theirs = pty.openpty()
    environment = {
        **os.environ,
        "PRESENCE_REDIS_URL": at_two_gateways.url,
        "PRESENCE_OPENIM_API": at_two_gateways.openim.url,
        "PRESENCE_OPENIM_SECRET": fakes.SECRET,
    }
    program = "from shared.cli import listing, main; listing.PROGRESS_SECONDS = -1; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "reconcile", "--online", "--json"],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=environment,
        check=True,
    )
    os.close(theirs)
    assert json.loads(done.stdout) == counts(60)
    assert f"[{'#' * 30}] 60 of about 60 compared".encode() in os.read(ours, 10_000)
    os.close(ours)


@pytest.mark.parametrize("arguments", [(), ("a", "--all"), ("--all", "--online")])
def test_it_wants_to_know_whom(world: World, arguments: tuple[str, ...]) -> None:
    assert world.run(*arguments).exit_code == 2


def test_it_wants_to_know_where_openim_is(server: Server) -> None:
    result = CliRunner().invoke(cli, ["reconcile", "--all"], env={"PRESENCE_REDIS_URL": server.url})
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.startswith("presence: PRESENCE_OPENIM_API: set it to")
