"""`presence doctor` asks OpenIM's API: each fault has its finding, and no secret and no token is shown."""

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any

import openim as fakes
import pytest
import trustme
from aiohttp import web
from click.testing import CliRunner
from redis import Redis
from support import Server, free_port, on_one_server

from shared.cli import cli
from shared.doctor.probes import examination, openim_api
from shared.doctor.probes import receiver as receivers

pytestmark = on_one_server
Doctor = Callable[..., dict[str, Any]]


@pytest.fixture
def fake() -> Iterator[fakes.OpenIM]:
    with fakes.serving(7) as one:
        yield one


@pytest.fixture
def doctor(server: Server, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> Doctor:
    """What it says about OpenIM: its codes with what was seen, and what it did not check, with the reason.

    A callback was applied once.
    """
    redis.hset("presence-stats", "applied", 1)
    for module in (examination, receivers):
        monkeypatch.setattr(module, "BETWEEN_SECONDS", 0.01)

    def examine(url: str, **settings: str) -> dict[str, Any]:
        given = {"redis_url": server.url, "port": str(free_port()), "admin_port": "0", "openim_api": url}
        given |= {"openim_secret": fakes.SECRET if url else "", **settings}
        environment = {f"PRESENCE_{name.upper()}": value for name, value in given.items()}
        started = time.monotonic()
        ran = CliRunner().invoke(cli, ["doctor", "--json"], env=environment)
        assert time.monotonic() - started < 10
        for secret in (fakes.SECRET, fakes.TOKEN, "token-0", "geheim"):
            assert secret not in ran.output
        said = json.loads(ran.stdout)
        codes = {each["code"]: each["seen"] for each in said["findings"]}
        return {code: seen for code, seen in codes.items() if code[:3] in ("P10", "P08", "P09", "P06")} | {
            each["what"]: each["because"] or each["state"] for each in said["checks"] if "OpenIM" in each["what"]
        }

    return examine


def codes(said: dict[str, Any]) -> list[str]:
    return [name for name in said if name[0] == "P" and name[1:].isdecimal()]


def leaky(status: int, **headers: str) -> web.Response:
    """Says something else than it should, with a user's token in it."""
    return web.Response(status=status, body=b'{"errCode":0,"data":["%s"]}' % fakes.TOKEN.encode(), headers=headers)


def test_all_is_well(fake: fakes.OpenIM, doctor: Doctor) -> None:
    said = doctor(fake.url.replace("//", "//user:geheim@"), reconcile_seconds="600")
    assert codes(said) == []
    assert said[f"OpenIM at {fake.url}, 3.8.1 or later"] == "checked"
    fake.release = "v3.8.4-alpha.1"
    said = doctor(fake.url)
    assert said[f"OpenIM at {fake.url}, v3.8.4-alpha.1"] == "checked"
    assert said["regular comparisons with OpenIM"] == "PRESENCE_RECONCILE_SECONDS is 0"


def test_it_is_not_asked_where_nobody_said_so(fake: fakes.OpenIM, doctor: Doctor) -> None:
    said = doctor("")
    assert (codes(said), said["OpenIM's API"]) == ([], "PRESENCE_OPENIM_API is not set")
    assert not fake.asked


FAULTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "wrong secret": ({"secret": "another"}, "P103", "PRESENCE_OPENIM_SECRET is not its secret"),
    "not an admin": ({"admins": ("root",)}, "P104", "PRESENCE_OPENIM_ADMIN is not one of its admins"),
    "not an admin of an old one": ({"admins": ("root",), "is_old": True}, "P104", "not one of its admins"),
    "token always ended": (
        {"errors": {"/user/get_users_online_status": 1506}},
        "P106",
        "/user/get_users_online_status with errCode 1506",
    ),
    "redirect": ({"raw": lambda _: leaky(307, Location=f"http://127.0.0.1:1/{fakes.TOKEN}")}, "P105", "redirects"),
    "no such question": ({"raw": lambda _: leaky(404)}, "P105", "HTTP 404"),
    "another form": ({"raw": lambda _: leaky(200)}, "P105", "in a form that we do not know"),
    "error of HTTP": ({"raw": lambda _: leaky(502)}, "P106", "with HTTP 502"),
    "error": ({"errors": {"/auth/get_admin_token": 500}}, "P106", "with errCode 500"),
    "slow": ({"seconds": 1.5}, "P106", "does not answer within 0.5 s"),
    "limited": ({"limited": 9, "retry_after": "0"}, "P107", "limits how often"),
    "limited for long": ({"limited": 9, "retry_after": "3600"}, "P107", "limits how often"),
    "clock ahead": ({"ahead_ms": 7_000}, "P108", "s ahead of this machine's"),
    "clock behind": ({"ahead_ms": -60_000}, "P108", "s behind this machine's"),
    "silent release": ({"release": "v3.8.1"}, "P086", "is 3.8.1"),
}


@pytest.mark.parametrize(("switches", "code", "words"), FAULTS.values(), ids=FAULTS)
def test_each_fault_has_its_finding(
    fake: fakes.OpenIM,
    doctor: Doctor,
    monkeypatch: pytest.MonkeyPatch,
    switches: dict[str, Any],
    code: str,
    words: str,
) -> None:
    if "seconds" in switches:
        monkeypatch.setattr(openim_api, "ASK_SECONDS", 0.5)
    for name, value in switches.items():
        setattr(fake, name, value)
    said = doctor(fake.url)
    assert codes(said) == [code], said
    assert words in said[code]
    is_usable = code in ("P108", "P086")
    assert ("OpenIM's API" in said) != is_usable
    assert is_usable or said["OpenIM's API"] == "it could not be asked"


def test_what_it_does_not_say_is_not_taken_for_well(fake: fakes.OpenIM, doctor: Doctor) -> None:
    fake.is_old, fake.ahead_ms = True, None
    said = doctor(fake.url, online_lease_seconds="1800")
    assert codes(said) == ["P061"]
    assert "3.8.0 or older" in said["P061"]
    assert said["OpenIM's clock"] == "its API does not say what time it has"


def test_a_release_that_may_send_nothing_is_named_where_nothing_came(
    fake: fakes.OpenIM, doctor: Doctor, redis: Redis
) -> None:
    redis.delete("presence-stats")
    assert "is 3.8.1 or later, and no callback was ever applied" in doctor(fake.url)["P087"]
    fake.is_old = True
    assert "is 3.8.0 or older, and no callback was ever applied" in doctor(fake.url)["P087"]
    fake.is_old, fake.release = False, "main"
    assert codes(doctor(fake.url)) == []


def test_what_workers_said_is_not_said_twice(fake: fakes.OpenIM, doctor: Doctor, redis: Redis) -> None:
    redis.hset("presence-reconcile", mapping={"trouble": "it was away", "trouble_at": time.time_ns() // 1_000_000})
    assert codes(doctor(fake.url)) == ["P100"]
    fake.secret = "another"
    assert codes(doctor(fake.url)) == ["P103"]


@contextmanager
def answering(said: bytes) -> Iterator[int]:
    """Another program, which says the same to everybody."""

    class Answers(StreamRequestHandler):
        def handle(self) -> None:
            self.request.recv(65_536)
            self.wfile.write(said)

    with ThreadingTCPServer(("127.0.0.1", 0), Answers) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        yield other.server_address[1]
        other.shutdown()


def test_nobody_or_another_program_is_there(doctor: Doctor) -> None:
    assert "cannot be reached: Connection refused" in doctor(f"http://127.0.0.1:{free_port()}")["P101"]
    assert "its name cannot be looked up" in doctor("http://openim.invalid:10002")["P101"]
    with answering(b"-ERR unknown command\r\n") as port:
        assert "does not speak HTTP" in doctor(f"http://127.0.0.1:{port}")["P105"]
        assert "does not speak TLS" in doctor(f"https://127.0.0.1:{port}")["P105"]
    with answering(b"") as port:
        assert "closed the connection" in doctor(f"http://127.0.0.1:{port}")["P106"]
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>") as port:
        assert "in a form that we do not know" in doctor(f"http://127.0.0.1:{port}")["P105"]


def test_a_silent_one_holds_up_nothing(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openim_api, "ASK_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert "does not answer within" in doctor(f"http://127.0.0.1:{silent.getsockname()[1]}")["P106"]


def test_a_certificate_must_be_trusted(doctor: Doctor) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    with fakes.serving(7, tls=context) as fake:
        assert "a certificate that is not trusted here" in doctor(fake.url)["P102"]
        assert not fake.asked
