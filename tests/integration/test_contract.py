"""docs/redis-keys.md has every key that exists, and every key that it has exists."""

import json
from collections.abc import Callable
from pathlib import Path

import contract
import pytest
import recipes
from redis import Redis
from redis.exceptions import NoPermissionError
from support import Process, Receiver, Server, Worker, on_one_server, wait_until

import openim_presence as presence
from openim_presence import ConsumerGroup, Feed, Missed
from openim_presence.feed import FIELDS as ENTRY_FIELDS
from openim_presence.keys import Keys
from openim_presence.reading import FIELDS
from shared.events import Event
from shared.redis.turn import Turn
from shared.settings import Settings
from shared.truth.ledger import LedgerWriter
from worker.reconcile.doubtful import Doubtful
from worker.reconcile.state import State
from worker.store.store import Store

Keep = Callable[[Process], Process]
RETENTION_SECONDS = 3600


def found(client: Redis) -> dict[str, str]:
    """Every key and its type; users' keys count as one."""
    names = {key.decode(): client.type(key).decode() for key in client.scan_iter()}
    return {
        "presence:<userID>" if name.startswith("presence:") else name: kind.replace("zset", "sorted set")
        for name, kind in names.items()
        if kind != "none"  # it went away meanwhile
    }


def callback(receiver: Receiver, name: str, user: str, seq: int, conn: str = "", platform: int = 0) -> None:
    command = f"callbackUser{name}Command"
    body = {"userID": user, "callbackCommand": command, "seq": seq, "connID": conn, "platformID": platform}
    status, _ = receiver.post(
        f"/?command={command}",
        {"Content-Type": "application/json", "operationID": "p_7_1"},
        json.dumps(body).encode(),
    )
    assert status == 200


def is_private(field: str) -> bool:
    return field in ("u", "floor", "outbox") or ":" in field


@on_one_server
def test_the_page_has_every_key_there_is_and_no_other(server: Server, redis: Redis, tmp_path: Path, keep: Keep) -> None:
    queue = Redis(port=server.port, db=1)
    queue_url = server.url.replace("/0", "/1")
    options = {"online_lease_seconds": "600", "retention_seconds": str(RETENTION_SECONDS), "queue_url": queue_url}
    receiver = Receiver(tmp_path, server.url, **options)
    keep(receiver)
    seen: dict[str, tuple[str, str]] = {}

    def see() -> dict[str, tuple[str, str]]:
        for where, client in (("presence", redis), ("queue", queue)):
            for name, kind in found(client).items():
                if name.startswith("rq:"):
                    seen["rq:*"] = ("RQ's own", where)
                else:
                    seen[name] = (kind, where)
        return seen

    callback(receiver, "Online", "alice", 1, platform=1)
    callback(receiver, "Online", "bob", 1)
    callback(receiver, "Offline", "bob", 2)
    callback(receiver, "Online", "bob", 0)  # stale
    callback(receiver, "Offline", "bob", 2)  # duplicate
    for number in range(40):
        callback(receiver, "Offline", "carol", 3 + number, f"c{number}")
    wait_until(lambda: queue.exists("rq:queue:presence"))
    LedgerWriter(queue, Keys("presence")).failed("OpenIM is away", 1)  # as `presence reconcile` does
    Doubtful(queue, Keys("presence")).add(["alice"], 1)
    State(queue, Keys("presence")).add(["alice"])  # as a worker does that compares with OpenIM
    Turn(queue, Keys("presence").reconciler, 60).take()
    see()
    keep(Worker(tmp_path, server.url, **options))
    wait_until(lambda: see() == contract.keys(), what="every key of the page, and no other")

    wait_until(lambda: redis.hget("presence:carol", "seq") == b"42")
    public = contract.fields("Fields of `presence:<userID>`")
    for user in ("alice", "bob", "carol"):
        assert {name.decode() for name in redis.hkeys(f"presence:{user}") if not is_private(name.decode())} == public
    entries = [fields for _, fields in redis.xrange("presence-changes")]
    assert len(entries) == 3  # bob came and went before a worker looked
    for entry in entries:
        assert {name.decode() for name in entry} == contract.fields("Fields of an entry of `presence-changes`")
    counters = {name.decode() for name in redis.hkeys("presence-stats")}
    promised = {name for name in counters if name != "lag_ms" and ":" not in name}
    assert promised >= {"users_online", "applied", "stale", "duplicate", "changes"}
    assert promised <= contract.fields("Fields of `presence-stats`")
    assert presence.users_online(redis) == 1

    assert redis.ttl("presence:alice") == -1
    assert 0 < redis.ttl("presence:bob") <= RETENTION_SECONDS
    assert redis.zrange("presence-leases", 0, -1) == [b"alice"]


def test_the_code_knows_the_keys_of_the_page_and_no_other() -> None:
    keys = Keys("presence")
    properties = {name for name, value in vars(Keys).items() if isinstance(value, property)} - {"queue"}
    ours = {keys.user("<userID>"), "rq:*"} | {getattr(keys, name) for name in properties}
    assert ours == set(contract.keys())


def test_the_readers_know_the_fields_of_the_page_and_no_other() -> None:
    assert set(FIELDS) == contract.fields("Fields of `presence:<userID>`")
    assert set(ENTRY_FIELDS) == contract.fields("Fields of an entry of `presence-changes`")


def test_a_reader_may_be_held_to_reading(server: Server, redis: Redis, tmp_path: Path) -> None:
    Store(redis, Settings()).apply([Event("alice", "callbackUserOnlineCommand", 1, "", 0, "", "", 1)])
    words = recipes.text("reader.sh").splitlines()[1].replace("'", "").split()
    assert redis.execute_command(*words[1:])
    try:
        with Redis(port=server.port, username="reader", password="secret") as reader:
            assert [user.status for user in presence.read(reader, ["alice", "bob"])] == ["online", "unknown"]
            assert [user.user_id for user in presence.read_all(reader)] == ["alice"]
            assert presence.users_online(reader) == 1
            assert [change.user_id for change in Feed(reader, after="0").poll(0.01)] == ["alice"]
            for write in (("HSET", "presence:alice", "status", "offline"), ("GET", "else"), ("FLUSHALL",)):
                with pytest.raises(NoPermissionError):
                    reader.execute_command(*write)
            redis.execute_command("ACL", "SETUSER", "reader", "%RW~presence-changes", "+@stream")  # as the page says
            group = ConsumerGroup(reader, "g", "c", take_over_seconds=0)
            with pytest.raises(Missed) as missed:
                group.poll(0.01)
            group.ack(missed.value)
            for _ in range(2):  # the second time it also looks for what others left
                changes = group.poll(0.01)
                assert [change.user_id for change in changes] == ["alice"]
            group.ack(changes)
            assert group.poll(0.01) == []
    finally:
        redis.execute_command("ACL", "DELUSER", "reader")
