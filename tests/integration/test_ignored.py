"""Events that changed nothing are recorded, and those that are applied are not."""

import pytest
from redis import Redis
from support import on_one_server

from shared import ignored
from shared.events import Event
from shared.ignored import Ignored
from shared.settings import Settings
from worker.store.store import Outcome, Store

pytestmark = on_one_server
ON, OFF = "callbackAfterUserOnlineCommand", "callbackAfterUserOfflineCommand"


@pytest.fixture
def store(redis: Redis) -> Store:
    return Store(redis, Settings())


def web(command: str, seq: int, user: str = "alice") -> Event:
    return Event(user, command, seq, "", 5, "Web", f"op{seq}", seq, "1")  # type: ignore[arg-type]


def written(redis: Redis) -> list[Ignored | None]:
    return [ignored.read(entry_id, fields) for entry_id, fields in redis.xrange("presence-ignored")]


def test_what_is_stale_or_a_duplicate_is_written_down(store: Store, redis: Redis) -> None:
    left, came = web(OFF, 7), web(ON, 5)
    store.apply([left])
    assert not redis.exists("presence-ignored")
    store.apply([left, came])
    found = [each for each in written(redis) if each]
    assert [(each.outcome, each.event) for each in found] == [("stale", came), ("duplicate", left)]
    now_ms = redis.time()[0] * 1000
    assert all(now_ms - 60_000 < each.at_ms < now_ms + 60_000 for each in found)
    assert 0 < redis.ttl("presence-ignored") <= ignored.KEPT_SECONDS


def test_a_large_batch_that_comes_again_leaves_room_for_others(store: Store, redis: Redis) -> None:
    crowd = [web(OFF, 7, f"u{number}") for number in range(ignored.TOGETHER_MOST + 50)]
    store.apply(crowd)
    store.apply([*crowd, web(ON, 6, "u3")])
    found = written(redis)
    assert len(found) == ignored.TOGETHER_MOST
    assert found[0]
    assert found[0].outcome == "stale"


def test_all_of_it_is_bounded(store: Store, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ignored, "KEPT_MOST", 200)
    left = web(OFF, 7)
    for _ in range(10):
        store.apply([left] * ignored.TOGETHER_MOST)
    assert redis.xlen("presence-ignored") < 400


def test_a_key_of_another_type_holds_up_nobody(store: Store, redis: Redis) -> None:
    redis.set("presence-ignored", "x")
    left = web(OFF, 7)
    assert store.apply([left]) == [Outcome("applied", flipped=True)]
    assert store.apply([left]) == [Outcome("duplicate")]
    assert redis.hget("presence-stats", "duplicate") == b"1"
