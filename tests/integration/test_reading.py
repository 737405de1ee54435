"""The read module: many users in a few round trips, with any client, even if something is wrong with one of them."""

import asyncio
from collections.abc import Callable, Iterator

import pytest
import redis
import redis.asyncio
from redis.connection import Connection
from redis.exceptions import ConnectionError
from support import Server, free_port

import openim_presence as presence
from openim_presence import Presence
from shared.redis.client import connect

HASH = {"status": "online", "seq": "9223372036854775807", "changed_at": "7", "updated_at": "8", "sessions": "2"}


@pytest.fixture(params=[False, True], ids=["bytes", "text"])
def client(request: pytest.FixtureRequest, server: Server) -> Iterator[redis.Redis]:
    with redis.Redis(port=server.port, decode_responses=request.param) as client:
        yield client


@pytest.fixture(params=["sync", "asyncio"])
def read(request: pytest.FixtureRequest, client: redis.Redis) -> Callable[..., list[Presence]]:
    """`read` or `read_all`, blocking or asyncio, as a list."""
    options = client.get_connection_kwargs()

    async def gather(name: str, *arguments: object) -> list[Presence]:
        twin = redis.asyncio.Redis(port=options["port"], decode_responses=options["decode_responses"])
        async with twin:
            return [user async for user in getattr(presence, f"{name}_async")(twin, *arguments)]

    def call(name: str, *arguments: object) -> list[Presence]:
        if request.param == "asyncio":
            return asyncio.run(gather(name, *arguments))
        return list(getattr(presence, name)(client, *arguments))

    return call


def test_users_come_in_the_order_asked_for(read: Callable[..., list[Presence]], client: redis.Redis) -> None:
    client.hset("presence:alice", mapping=HASH)
    client.hset("presence:bob", mapping={**HASH, "status": "offline", "platform": "IOS", "p:1": "private"})
    assert read("read", ["bob", "nobody", "alice", "bob"]) == [
        Presence("bob", "offline", "9223372036854775807", 7, 8, platform="IOS", sessions=2),
        Presence("nobody", "unknown"),
        Presence("alice", "online", "9223372036854775807", 7, 8, sessions=2),
        Presence("bob", "offline", "9223372036854775807", 7, 8, platform="IOS", sessions=2),
    ]


def test_one_broken_key_does_not_break_the_others(read: Callable[..., list[Presence]], client: redis.Redis) -> None:
    client.set("presence:text", "x")
    client.hset("presence:half", "seq", "1")
    client.hset("presence:odd", mapping={**HASH, "status": "gone"})
    client.hset("presence:number", mapping={**HASH, "changed_at": "soon"})
    client.hset("presence:bytes", mapping={**HASH, "platform": b"\xff"})
    client.hset("presence:fine", mapping=HASH)
    found = {user.user_id: user for user in read("read", ["text", "half", "odd", "number", "bytes", "\ud800", "fine"])}
    assert {name: (user.status, user.error) for name, user in found.items()} == {
        "text": ("unknown", "the key is not a hash"),
        "half": ("unknown", "its status is ''"),
        "odd": ("unknown", "its status is 'gone'"),
        "number": ("online", "its changed_at is not a number"),
        "bytes": ("online", ""),
        "\ud800": ("unknown", ""),
        "fine": ("online", ""),
    }
    assert found["text"].as_json() == {"user_id": "text", "status": "unknown", "error": "the key is not a hash"}
    assert "error" not in found["fine"].as_json()


def test_platforms_are_numbers_for_programs_and_the_hashes_text_in_json(
    read: Callable[..., list[Presence]], client: redis.Redis
) -> None:
    for name, platforms in {"one": "2", "more": "1,5", "none": "", "odd": "1,x"}.items():
        client.hset(f"presence:{name}", mapping={**HASH, "platforms": platforms})
    client.hset("presence:old", mapping=HASH)  # as a release wrote it that had no such field
    found = {user.user_id: user for user in read("read", ["one", "more", "none", "old", "odd", "nobody"])}
    assert {name: (user.platforms, user.as_json().get("platforms"), user.error) for name, user in found.items()} == {
        "one": ((2,), "2", ""),
        "more": ((1, 5), "1,5", ""),
        "none": ((), "", ""),
        "old": ((), "", ""),
        "odd": ((), "", "its platforms are not numbers"),
        "nobody": ((), None, ""),
    }


def test_all_are_found_and_nothing_but_users(read: Callable[..., list[Presence]], client: redis.Redis) -> None:
    for number in range(2500):
        client.hset(f"presence:u{number}", mapping=HASH)
    for name in ("presence-stats", "presences:x", "xpresence:y", b"presence:\xff", "other:z"):
        client.hset(name, mapping=HASH)
    client.set("presence:text", "x")
    found = read("read_all")
    assert sorted(user.user_id for user in found) == sorted(["text", *(f"u{number}" for number in range(2500))])


def test_another_prefix(read: Callable[..., list[Presence]], client: redis.Redis) -> None:
    client.hset("{im}:alice", mapping=HASH)
    client.hset("presence:bob", mapping=HASH)
    assert [user.status for user in read("read", ["alice", "bob"], "{im}")] == ["online", "unknown"]
    assert [user.user_id for user in read("read_all", "{im}")] == ["alice"]


def test_ten_thousand_users_take_ten_round_trips(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[object] = []
    send = Connection.send_packed_command
    client.ping()
    monkeypatch.setattr(Connection, "send_packed_command", lambda *a, **k: (sent.append(1), send(*a, **k)))
    found = list(presence.read(client, (f"u{number}" for number in range(10_000))))
    assert len(found) == 10_000
    assert len(sent) == 10


def test_one_string_is_no_list_of_users(read: Callable[..., list[Presence]]) -> None:
    for one in ("alice", b"alice"):
        with pytest.raises(TypeError, match="list"):
            read("read", one)


def test_bytes_are_no_ids(read: Callable[..., list[Presence]]) -> None:
    """As a client without decode_responses returns them, say of a set of users. Nobody would be found."""
    with pytest.raises(TypeError, match="decode"):
        read("read", ["alice", b"bob"])


def test_counting_who_is_online_scans_nothing(client: redis.Redis) -> None:
    assert presence.users_online(client) == 0
    client.hset("presence-stats", "users_online", 3)
    assert presence.users_online(client) == 3


def test_a_server_that_is_away_is_an_error_and_not_an_unknown_user() -> None:
    with pytest.raises(ConnectionError):
        list(presence.read(connect(f"redis://127.0.0.1:{free_port()}/0"), ["alice"]))


def test_a_server_that_refuses_is_an_error_and_not_an_unknown_user(server: Server) -> None:
    server.client.acl_setuser("limited", enabled=True, nopass=True, keys=["other:*"], commands=["+@all"])
    with (
        redis.Redis(port=server.port, username="limited", password="x") as client,
        pytest.raises(redis.exceptions.NoPermissionError),
    ):
        list(presence.read(client, ["alice"]))
