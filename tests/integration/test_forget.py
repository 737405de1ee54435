"""`presence forget`: a user is gone, readers learn of it, and the user's next callback starts afresh."""

import pytest
from click.testing import CliRunner
from redis import Redis
from support import Server

from shared.cli import cli
from shared.events import EVENT
from shared.settings import Settings
from worker.store.store import Store

AHEAD = 9_000_000_000_000


def event(user: str, kind: str, seq: int, received_at: int = 1) -> object:
    return EVENT.validate_python([user, f"callbackUser{kind}Command", seq, "", 1, "IOS", "op", received_at])


@pytest.fixture
def store(redis: Redis) -> Store:
    store = Store(redis, Settings(online_lease_seconds=1800))
    store.prepare()
    return store


def forget(server: Server, *users: str, given: str | None = None) -> str:
    ran = CliRunner().invoke(cli, ["forget", *users], given, {"PRESENCE_REDIS_URL": server.url})
    assert ran.exit_code == 0, ran.output
    return ran.output


def test_her_next_callback_begins_anew(store: Store, server: Server, redis: Redis) -> None:
    store.apply([event("alice", "Offline", 2**62), event("alice", "Online", 7)])  # type: ignore[list-item]
    assert redis.hget("presence:alice", "status") == b"offline"
    assert "forgotten, was offline" in forget(server, "alice")
    assert not redis.exists("presence:alice")
    store.apply([event("alice", "Online", 8)])  # type: ignore[list-item]
    assert redis.hget("presence:alice", "status") == b"online"


def test_whoever_reads_the_changes_is_told_and_the_counters_stay_true(
    store: Store, server: Server, redis: Redis
) -> None:
    store.apply([event("alice", "Online", 7), event("bob", "Online", 7)])  # type: ignore[list-item]
    assert redis.zscore("presence-leases", "alice")
    assert "forgotten, was online" in forget(server, "alice")
    ((_, entry),) = redis.xrevrange("presence-changes", count=1)
    assert {name: entry[name] for name in (b"user_id", b"status", b"previous", b"command", b"seq")} == {
        b"user_id": b"alice",
        b"status": b"offline",
        b"previous": b"online",
        b"command": b"forgotten",
        b"seq": b"7",
    }
    assert redis.zscore("presence-leases", "alice") is None
    assert redis.hmget("presence-stats", "users_online", "changes") == [b"1", b"3"]


def test_of_a_user_who_was_offline_nobody_is_told(store: Store, server: Server, redis: Redis) -> None:
    store.apply([event("alice", "Offline", 7)])  # type: ignore[list-item]
    forget(server, "alice")
    assert redis.xlen("presence-changes") == 1


def test_what_no_user_can_have_is_no_error(server: Server, redis: Redis) -> None:
    redis.hset("presence:odd", mapping={"status": "online", "changed_at": "x"})
    assert "nothing known" in forget(server, "\udcff")
    assert "forgotten, was online" in forget(server, "odd")
    ((_, entry),) = redis.xrange("presence-changes")
    assert entry[b"changed_at"].isdigit()


def test_users_come_from_standard_input_and_a_broken_key_goes_too(server: Server, redis: Redis) -> None:
    redis.set("presence:broken", "x")
    redis.hset("presence:alice", "status", "offline")
    lines = forget(server, "-", given="broken\nnobody\r\nalice\n").splitlines()
    assert [line.split(maxsplit=1) for line in lines] == [
        ["broken", "forgotten, was unknown"],
        ["nobody", "nothing known"],
        ["alice", "forgotten, was offline"],
    ]
    assert not redis.keys("presence:*")
