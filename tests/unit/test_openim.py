"""OpenIM's REST interface: what its answers say, how it is asked, and which part of them is never shown."""

import asyncio
import json
import logging
import ssl
import traceback
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import openim as fakes
import pytest
import trustme
from aiohttp import web
from support import SAMPLES, free_port

from shared.openim import answers, calls, client
from shared.openim.answers import Connection, Unreadable
from shared.openim.client import OpenIM
from shared.openim.errors import OpenIMAway, OpenIMError, OpenIMRefuses

T = TypeVar("T")

#: Answers of a real v3.8.3-patch.16 to the questions A, B and C, with users' tokens replaced.
REST: dict[str, dict[str, Any]] = json.loads((SAMPLES / "rest.json").read_text())


@pytest.fixture
def fake() -> Iterator[fakes.OpenIM]:
    with fakes.serving(7, 8) as one:
        yield one


def ask(fake: fakes.OpenIM, question: Callable[[OpenIM], Awaitable[T]], secret: str = fakes.SECRET) -> T:
    async def asking() -> T:
        async with OpenIM(fake.url, secret, fakes.ADMIN) as openim:
            return await question(openim)

    return asyncio.run(asking())


def who_is_online(openim: OpenIM) -> Awaitable[answers.Platforms]:
    return openim.platforms(["alice", "bob"])


# What answers say.


@pytest.mark.parametrize(
    ("name", "connections", "platforms", "recorded"),
    [
        ("one of two users is online", {"alice": [1], "bob": []}, {"alice": {1: 1}}, {"alice": [1], "bob": []}),
        ("two connections of one platform", {"alice": [1, 1]}, {"alice": {1: 2}}, {"alice": [1]}),
        ("two platforms", {"alice": [1, 5]}, {"alice": {1: 1, 5: 1}}, {"alice": [1, 5]}),
        ("nobody is online", {"alice": []}, {}, {"alice": []}),
        ("two platforms at two gateways", {"alice": [5]}, {"alice": {1: 1, 5: 1}}, {"alice": [1, 5]}),
        ("one of the two gateways was killed", {"alice": [1]}, {"alice": {1: 1}}, {"alice": [1, 5]}),
    ],
)
def test_what_a_real_one_answered(
    name: str, connections: dict[str, list[int]], platforms: answers.Platforms, recorded: answers.Recorded
) -> None:
    a, b, c = (fakes.as_json(REST[name][question]) for question in "ABC")
    found = answers.connections(a)
    assert {user: [each.platform_id for each in of] for user, of in found.of.items()} == connections
    assert found.has_old_form is False
    assert answers.platforms(c) == platforms
    assert answers.recorded(b) == recorded


def test_the_old_forms() -> None:
    online = {"platform": "APad", "status": "online", "connID": "c1", "isBackground": False, "token": "t"}
    a = {"data": [{"userID": "alice", "status": "online", "detailPlatformStatus": [online]}]}
    assert answers.connections(fakes.as_json(a)) == ({"alice": [Connection(8, "c1")]}, True)
    places = [{"platform": "IOS", "total": 2, "token": ["t", "t"]}, {"platform": "Toaster", "total": 1, "token": ["t"]}]
    c = {"data": [{"userID": "alice", "status": "online", "singlePlatformToken": places}]}
    assert answers.platforms(fakes.as_json(c)) == {"alice": {1: 2, 0: 1}}


@pytest.mark.parametrize("data", [None, [], [{"userID": "alice", "status": 0, "singlePlatformToken": None}]])
def test_nobody_is_online_in_any_form(data: Any) -> None:
    assert answers.platforms(fakes.as_json({"errCode": 0, "data": data})) == {}


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b"{}", b'{"data":{}}', b'{"data":[{"userID":7}]}', b"<html>", b"\xff", b"[" * 10_000],
)
@pytest.mark.parametrize("read", [answers.error_code, answers.connections, answers.platforms, answers.token])
def test_what_is_none_of_its_answers_is_said_to_be_none(read: Callable[[bytes], Any], body: bytes) -> None:
    with pytest.raises(Unreadable) as error:
        read(body)
    assert error.value.__context__ is None


# The fake answers as the real one did.


@pytest.mark.parametrize(("path", "question"), [("online_status", "A"), ("status", "B"), ("online_token_detail", "C")])
@pytest.mark.parametrize("platforms", [(1,), (1, 1), (1, 5), ()])
def test_the_fake_has_the_forms_of_the_recordings(
    fake: fakes.OpenIM, path: str, question: str, platforms: tuple[int, ...]
) -> None:
    names = {(1,): "one of two users is online", (1, 1): "two connections of one platform", (1, 5): "two platforms"}
    recorded = REST[names.get(platforms, "nobody is online")][question]
    for platform in platforms:
        fake.im.open("alice", platform)
        fake.im.second_passes()

    async def post() -> Any:
        async with aiohttp.ClientSession(fake.url, headers={"operationID": "op"}) as session:
            who = {"secret": fakes.SECRET, "userID": fakes.ADMIN}
            login = await (await session.post("/auth/get_admin_token", json=who)).json()
            users = {"userIDs": ["alice", "bob"] if platforms == (1,) else ["alice"]}
            headers = {"token": login["data"]["token"]}
            return await (await session.post(f"/user/get_users_{path}", json=users, headers=headers)).json()

    assert fakes.shape(asyncio.run(post())) == fakes.shape(recorded)


LOG_IN, A, B, C = (
    "/auth/get_admin_token",
    *(f"/user/get_users_{name}" for name in ("online_status", "status", "online_token_detail")),
)
ALICE = {"userIDs": ["alice"]}


@pytest.mark.parametrize(
    ("path", "question", "headers", "status", "code", "has_data"),
    [
        (LOG_IN, {"secret": "x", "userID": fakes.ADMIN}, {}, 200, 1002, False),
        (LOG_IN, {"secret": fakes.SECRET, "userID": "alice"}, {}, 200, 1001, False),
        (LOG_IN, {"secret": fakes.SECRET, "userID": fakes.ADMIN}, {"operationID": ""}, 200, 1001, False),
        *((path, ALICE, {"operationID": ""}, 200, 1001, False) for path in (A, B, C)),
        *((path, ALICE, {"token": ""}, 200, 1001, False) for path in (A, B, C)),
        *((path, ALICE, {"token": "nonsense"}, 200, 1503, False) for path in (A, B, C)),
        (A, ALICE, {"token": "bob's"}, 200, 1002, False),
        (B, ALICE, {"token": "bob's"}, 200, 0, True),
        (C, ALICE, {"token": "bob's"}, 200, 0, True),
        *((path, {"userIDs": []}, {}, 200, 0, True) for path in (A, C)),
        (B, {"userIDs": []}, {}, 200, 1001, False),
        ("/user/nothing", {}, {}, 404, None, False),
    ],
)
def test_the_fake_refuses_as_a_real_one(
    fake: fakes.OpenIM,
    path: str,
    question: dict[str, Any],
    headers: dict[str, str],
    status: int,
    code: int | None,
    has_data: bool,
) -> None:
    """What v3.8.3-patch.16 answered to the same questions."""
    fake._tokens |= {"admin's": fakes.ADMIN, "bob's": "bob"}

    async def post() -> tuple[int, str]:
        given = {"operationID": "op", "token": "admin's", **headers}
        async with aiohttp.ClientSession(fake.url, headers=given) as session:
            response = await session.post(path, json=question)
            return response.status, await response.text()

    got, text = asyncio.run(post())
    assert got == status
    if code is not None:
        assert (json.loads(text)["errCode"], "data" in json.loads(text)) == (code, has_data)


# How it is asked.


def test_all_three_questions_and_the_list_of_users(fake: fakes.OpenIM) -> None:
    fake.im.open("alice", 1, gateway=0)
    fake.im.open("alice", 5, gateway=1)
    for gateway in (0, 1):
        fake.im.second_passes(gateway)
    fake.users = [f"user{number}" for number in range(2500)]

    async def everything(openim: OpenIM) -> None:
        assert [each.platform_id for each in (await openim.connections(["alice"])).of["alice"]] == [1]
        assert await who_is_online(openim) == {"alice": {1: 1, 5: 1}}
        assert await openim.recorded(["alice", "bob"]) == {"alice": [1, 5], "bob": []}
        assert [len(page) async for page in openim.users()] == [1000, 1000, 500]
        assert not openim.is_old

    ask(fake, everything)
    assert fake.paths()[:2] == ["/auth/get_admin_token", "/user/get_users_online_status"]  # A before all else
    assert fake.paths().count("/auth/get_admin_token") == 1


def test_an_old_one(fake: fakes.OpenIM) -> None:
    fake.is_old = True
    fake.im.open("alice", 1)

    async def everything(openim: OpenIM) -> None:
        assert await who_is_online(openim) == {"alice": {1: 1}}
        assert openim.is_old

    ask(fake, everything)


@pytest.mark.parametrize("code", [1501, 1506])
def test_a_token_that_was_ended_is_replaced_once(fake: fakes.OpenIM, code: int) -> None:
    fake.im.open("alice", 1)

    async def twice(openim: OpenIM) -> None:
        await who_is_online(openim)
        fake.end_tokens(code)
        fake.asked.clear()
        answered = await asyncio.gather(*(who_is_online(openim) for _ in range(8)))
        assert answered == [{"alice": {1: 1}}] * 8

    ask(fake, twice)
    assert fake.paths().count("/auth/get_admin_token") == 1


def test_no_more_questions_at_a_time_than_openim_can_bear(fake: fakes.OpenIM, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, most = 0, 0
    original = calls.Calls._try

    async def counted(self: calls.Calls, *arguments: Any) -> calls.Reply:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        reply = await original(self, *arguments)
        at_once -= 1
        return reply

    monkeypatch.setattr(calls.Calls, "_try", counted)

    async def many(openim: OpenIM) -> None:
        await asyncio.gather(*(who_is_online(openim) for _ in range(20)))

    ask(fake, many)
    assert most == calls.CONCURRENCY


def test_too_many_ids_are_a_mistake_of_ours(fake: fakes.OpenIM) -> None:
    with pytest.raises(ValueError, match="401 users"):
        ask(fake, lambda openim: openim.platforms(["u"] * (client.MOST_IDS + 1)))


def test_a_limit_is_kept_to(fake: fakes.OpenIM, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.limited = 2
    pauses = []

    async def sleep(seconds: float) -> None:
        pauses.append(round(seconds, 1))

    fake.retry_after = "3"
    monkeypatch.setattr(calls.asyncio, "sleep", sleep)
    assert ask(fake, who_is_online) == {}
    assert pauses.count(3.0) >= 2


# What goes wrong, and what then shows.


def leaky(status: int = 200, **headers: str) -> web.Response:
    """Answers something unexpected that contains a user's token."""
    return web.Response(status=status, body=b'{"errCode":0,"data":["%s"]}' % fakes.TOKEN.encode(), headers=headers)


TROUBLES: dict[str, tuple[dict[str, Any], type[OpenIMError], str]] = {
    "wrong secret": ({"secret": "another"}, OpenIMRefuses, "PRESENCE_OPENIM_SECRET is not its secret"),
    "not an admin": ({"admins": ("root",)}, OpenIMRefuses, "PRESENCE_OPENIM_ADMIN is not one of its admins"),
    "not an admin of an old one": (
        {"admins": ("root",), "is_old": True},
        OpenIMRefuses,
        "PRESENCE_OPENIM_ADMIN is not one of its admins",
    ),
    "limited": ({"limited": 9, "retry_after": "0"}, OpenIMAway, "limits how often"),
    "limited for long": ({"limited": 1, "retry_after": "3600"}, OpenIMAway, "limits how often"),
    "error": ({"errors": {"/user/get_users_online_token_detail": 500}}, OpenIMAway, "with errCode 500"),
    "token always ended": (
        {"errors": {"/user/get_users_online_token_detail": 1506}},
        OpenIMRefuses,
        "keeps ending our token",
    ),
    "error of HTTP": ({"raw": lambda _: leaky(500)}, OpenIMAway, "with HTTP 500"),
    "bad request": ({"raw": lambda _: leaky(400)}, OpenIMRefuses, "HTTP 400"),
    "another server": ({"raw": lambda _: leaky(404)}, OpenIMRefuses, "HTTP 404"),
    "redirect": (
        {"raw": lambda _: leaky(307, Location=f"http://127.0.0.1:1/{fakes.TOKEN}")},
        OpenIMRefuses,
        "redirects",
    ),
    "another form": ({"raw": lambda _: leaky()}, OpenIMRefuses, "in a form that we do not know"),
    "no JSON": (
        {"raw": lambda _: web.Response(text=f"<p>{fakes.TOKEN}")},
        OpenIMRefuses,
        "in a form that we do not know",
    ),
    "too large": (
        {"raw": lambda _: web.Response(body=fakes.TOKEN.encode() * (calls.MOST_BYTES // 20 + 1))},
        OpenIMAway,
        "answers with more than",
    ),
    "slow": ({"seconds": 1.5}, OpenIMAway, "does not answer within"),
}


@pytest.mark.parametrize(("switches", "kind", "words"), TROUBLES.values(), ids=TROUBLES)
def test_a_failure_is_told_without_secrets(
    fake: fakes.OpenIM,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    switches: dict[str, Any],
    kind: type[OpenIMError],
    words: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    if "seconds" in switches:
        monkeypatch.setattr(calls, "CALL_SECONDS", 0.5)
    fake.im.open("alice", 1)
    for name, value in switches.items():
        setattr(fake, name, value)
    with pytest.raises(kind, match=words) as failure:
        ask(fake, who_is_online)
    assert failure.value.__context__ is None
    # Some tools show, with an error, the variables of all functions that it came through.
    dump = traceback.TracebackException.from_exception(failure.value, capture_locals=True)
    ours = [frame for frame in dump.stack if "shared/openim" in frame.filename]
    shown = f"{failure.value!r} {[(frame.name, frame.locals) for frame in ours]}"
    assert "'_ask'" in shown
    for secret in (fakes.TOKEN, fakes.SECRET, "token-0"):
        assert secret not in shown
        assert secret not in caplog.text


def test_a_gateway_that_holds_up_the_api_is_waited_for_no_longer_than_openim_would(
    fake: fakes.OpenIM, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert calls.CALL_SECONDS == 5.0
    fake.seconds = 0.1
    assert ask(fake, who_is_online) == {}
    monkeypatch.setattr(calls, "CALL_SECONDS", 0.2)
    fake.seconds = 0.5
    with pytest.raises(OpenIMAway):
        ask(fake, who_is_online)


def test_nobody_listens() -> None:
    nobody = fakes.OpenIM(fakes.Gateways(7), f"http://127.0.0.1:{free_port()}")
    with pytest.raises(OpenIMAway, match="cannot be reached: Connection refused"):
        ask(nobody, who_is_online)


def test_a_certificate_must_be_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority, context = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    with fakes.serving(7, tls=context) as fake:
        with pytest.raises(OpenIMAway, match="a certificate that is not trusted here"):
            ask(fake, who_is_online)
        assert not fake.asked
        authority.cert_pem.write_to_path(str(tmp_path / "root.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "root.pem"))
        trusting = ssl.create_default_context()
        monkeypatch.setattr("aiohttp.connector._SSL_CONTEXT_VERIFIED", trusting)  # made once, when it is imported
        assert ask(fake, who_is_online) == {}


def test_a_connection_that_was_cut_is_opened_again(fake: fakes.OpenIM, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = iter([True, True])
    original = calls._read

    async def read(response: aiohttp.ClientResponse) -> calls.Reply:
        if next(cut, False):
            raise aiohttp.ServerDisconnectedError
        return await original(response)

    monkeypatch.setattr(calls, "_read", read)
    assert ask(fake, who_is_online) == {}
