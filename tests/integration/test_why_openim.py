"""`presence why`, beside an OpenIM that may be asked as well."""

import http.client
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openim as fakes
import pytest
from aiohttp import web
from beside import PIDS, World, users
from click.testing import CliRunner
from redis import Redis
from support import Process, Receiver, Server, free_port, on_one_server

from shared.cli import cli
from shared.why import collector

pytestmark = on_one_server


@pytest.fixture
def world(redis: Redis, server: Server) -> Iterator[World]:
    """30 users are online at each of two gateways, as presence knows."""
    with fakes.serving(*PIDS) as openim:
        world = World(redis, server.url, openim)
        world.come(users("a", 30), gateway=0)
        world.come(users("b", 30), gateway=1)
        world.call_back(minutes_ago=2)
        yield world


def why(world: World, user: str, *options: str, code: int = 0, api: str | None = None) -> str:
    environment = {
        "PRESENCE_REDIS_URL": world.url,
        "PRESENCE_OPENIM_API": world.openim.url if api is None else api,
        "PRESENCE_OPENIM_SECRET": fakes.SECRET if api != "" else "",
    }
    result = CliRunner().invoke(cli, ["why", *options, user], env=environment)
    assert result.exit_code == code, result.output
    assert fakes.SECRET not in result.output
    assert fakes.TOKEN not in result.output
    return result.output


def says(world: World, user: str, code: int = 0) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(why(world, user, "--json", code=code))
    openim: dict[str, Any] = said["openim"]
    assert (openim["says"] in said["notes"]) == (not openim["trouble"])
    assert said["troubles"] == [openim["trouble"]] * bool(openim["trouble"])
    return openim


def test_openim_says_the_same(world: World) -> None:
    assert says(world, "a1") == {
        **{"platforms": [1], "recorded": [1], "agrees": True, "kind": None, "trouble": ""},
        "says": "OpenIM itself says: online on IOS; this agrees with presence.",
    }
    assert says(world, "nobody")["says"] == "OpenIM itself says: offline; this agrees with presence."
    text = why(world, "a1")
    assert "\nOpenIM        its gateways    online on IOS\n              its own record  online on IOS\n" in text


def test_openim_says_otherwise_and_reconcile_does_what_is_said(world: World) -> None:
    world.go(["a1"])
    world.come(["a2"], platform_id=5)
    world.call_back(lost=True)
    before = {key: world.redis.dump(key) for key in world.redis.scan_iter("*")}
    ghost, more = says(world, "a1"), says(world, "a2")
    assert (ghost["platforms"], ghost["recorded"], ghost["agrees"], ghost["kind"]) == ([], [], False, "ghost")
    assert ghost["says"] == "OpenIM itself says: offline; presence reconcile a1 would put it right."
    assert more["says"] == "OpenIM itself says: online on IOS and Web; presence reconcile a2 would put it right."
    assert {key: world.redis.dump(key) for key in world.redis.scan_iter("*")} == before
    world.reconcile("a1", "a2")
    assert says(world, "a1")["agrees"] and says(world, "a2")["agrees"]


def test_what_nobody_can_prove_is_left(world: World) -> None:
    world.openim.kill(1)
    assert says(world, "b1")["says"] == (
        "OpenIM itself says: offline (its own record: online on IOS); presence reconcile b1 would leave it, because "
        "nobody known to be at the gateway 10.0.0.2 (process 8) is in OpenIM's answer."
    )
    assert world.reconcile("b1", code=1)[0]["action"] == "none"


def test_a_key_that_is_none_of_ours_is_compared_with_nothing(world: World) -> None:
    world.redis.delete("presence:a1")
    world.redis.set("presence:a1", "x")
    openim = says(world, "a1", code=1)
    assert (openim["platforms"], openim["recorded"], openim["agrees"]) == ([1], [1], None)


def test_an_old_openim_has_no_record_that_counts(world: World) -> None:
    world.openim.is_old = True
    assert says(world, "a1")["recorded"] is None


@pytest.mark.parametrize(
    ("switches", "words"),
    [
        ({"secret": "another"}, " cannot be asked: PRESENCE_OPENIM_SECRET is not its secret"),
        ({"url": f"http://127.0.0.1:{free_port()}"}, " cannot be reached: Connection refused"),
        ({"seconds": 1.0}, " does not answer within 0.5 s"),
        ({"raw": lambda _: web.Response(text=fakes.TOKEN)}, " in a form that we do not know"),
    ],
)
def test_without_openim_it_says_what_presence_knows(
    world: World, monkeypatch: pytest.MonkeyPatch, switches: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr(collector, "OPENIM_SECONDS", 0.5 if "seconds" in switches else 4.5)
    for name, value in switches.items():
        setattr(world.openim, name, value)
    openim = says(world, "a1", code=1)
    assert words in openim["trouble"]
    assert openim["says"] == f"{openim['trouble']}."
    assert (openim["platforms"], openim["recorded"], openim["agrees"]) == (None, None, None)
    text = why(world, "a1", code=1)
    assert text.startswith("a1 has been online for 2 min")
    assert words in text


def test_openim_is_not_asked_where_nobody_said_so(world: World) -> None:
    assert json.loads(why(world, "a1", "--json", api=""))["openim"] is None
    assert not world.openim.asked


def test_the_page_answers_in_time_though_openim_does_not(
    world: World, tmp_path: Path, keep: Callable[[Process], Process]
) -> None:
    settings = {"openim_api": world.openim.url, "openim_secret": fakes.SECRET}
    receiver = Receiver(tmp_path, world.url, **settings)
    keep(receiver)

    def ask() -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", receiver.admin_port, timeout=10)
        connection.request("GET", "/api/users?id=a1")
        answer = connection.getresponse()
        said: dict[str, Any] = json.loads(answer.read())
        connection.close()
        return said

    assert ask()["openim"]["platforms"] == [1]
    world.openim.seconds = 5.5
    started = time.monotonic()
    said = ask()
    assert time.monotonic() - started < 6
    assert said["status"] == "online"
    assert said["openim"]["trouble"].endswith(" does not answer within 4.5 s")
    assert fakes.TOKEN not in receiver.text()
