"""The presence rules, in a real server."""

import itertools
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import histories
import model
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis
from support import Server

from shared.errors import SettingsError, Unavailable
from shared.events import SEQ_MAX, Event
from shared.redis.client import connect
from shared.settings import Settings
from worker.store.store import Outcome, Poison, Store

ON, OFF, KICK = (
    "callbackAfterUserOnlineCommand",
    "callbackAfterUserOfflineCommand",
    "callbackAfterUserKickOffCommand",
)


def event(
    command: str,
    seq: int,
    conn_id: str = "",
    platform_id: int = 0,
    user: str = "u",
    at: int = 0,
    operation_id: str = "",
    event_id: str = "",
) -> Event:
    """An event without an operationID, so that each is a batch of its own."""
    return Event(user, command, seq, conn_id, platform_id, "", operation_id, at or seq, event_id)  # type: ignore[arg-type]


@pytest.fixture
def store(redis: Redis) -> Store:
    return Store(redis, Settings())


def apply(store: Store, *events: Event) -> list[str]:
    results = store.apply(events)
    assert all(isinstance(result, Outcome) for result in results), results
    return [result.name for result in results if isinstance(result, Outcome)]


def user(redis: Redis, name: str = "u") -> dict[str, str]:
    return {key.decode(): value.decode() for key, value in redis.hgetall(f"presence:{name}").items()}


def changes(redis: Redis) -> list[dict[str, str]]:
    return [
        {key.decode(): value.decode() for key, value in fields.items()}
        for _, fields in redis.xrange("presence-changes")
    ]


def test_offline_callbacks_alone_make_a_user_offline_from_the_first(store: Store, redis: Redis) -> None:
    assert apply(store, Event("u", "callbackUserOfflineCommand", 5, "c", 0, "", "op1", 99)) == ["applied"]
    expected = {
        "status": "offline",
        "seq": "5",
        "changed_at": "99",
        "updated_at": "99",
        "command": "callbackUserOfflineCommand",
        "conn_id": "c",
        "platform_id": "",
        "platform": "",
        "operation_id": "op1",
        "sessions": "0",
    }
    assert expected.items() <= user(redis).items()
    assert changes(redis) == [
        {
            "user_id": "u",
            "status": "offline",
            "previous": "",
            "seq": "5",
            "changed_at": "99",
            "command": "callbackUserOfflineCommand",
            "conn_id": "c",
            "platform_id": "",
            "operation_id": "op1",
        }
    ]


def test_each_event_has_one_outcome(store: Store) -> None:
    assert apply(
        store,
        event(ON, 10, "c", 1),
        event(ON, 10, "c", 1),
        event(ON, 9, "c", 1),
        event(ON, 11, "c", 1),
        event(OFF, 20, "c"),
        event(OFF, 20, "c"),
        event(OFF, 19, "c"),
        event(ON, 15, "c", 1),
        event(ON, 21, "c", 1),
    ) == ["applied", "duplicate", "stale", "applied", "applied", "duplicate", "stale", "stale", "applied"]


def test_a_kick_off_is_an_offline_event(store: Store, redis: Redis) -> None:
    apply(store, event(ON, 1, platform_id=1), event(KICK, 2, platform_id=1))
    assert (user(redis)["status"], user(redis)["command"]) == ("offline", KICK)


def test_a_tie_goes_to_online(store: Store, redis: Redis) -> None:
    for order in ((ON, OFF), (OFF, ON)):
        redis.flushdb()
        apply(store, *(event(command, 7, platform_id=1) for command in order))
        assert (user(redis)["status"], user(redis)["command"]) == ("online", ON)


def test_a_platform_going_offline_closes_its_connections_only(store: Store, redis: Redis) -> None:
    apply(store, event(ON, 1, "a", 1), event(ON, 2, "b", 1), event(ON, 3, "c", 2), event(OFF, 4, platform_id=1))
    assert (user(redis)["status"], user(redis)["sessions"]) == ("online", "1")
    apply(store, event(OFF, 5))
    assert (user(redis)["status"], user(redis)["sessions"]) == ("offline", "0")


def test_a_late_older_event_does_not_move_a_connection_to_another_platform(store: Store, redis: Redis) -> None:
    moved, older, closed = event(ON, 12, "c", 1), event(ON, 10, "c", 2), event(OFF, 15, platform_id=1)
    for order in (
        (moved, closed, older),
        (older, moved, closed),
        (closed, moved, older),
        (closed, older, moved),
    ):
        redis.flushdb()
        apply(store, *order)
        assert user(redis)["status"] == "offline", order


def test_updated_at_never_goes_back_and_changed_at_is_the_flips(store: Store, redis: Redis) -> None:
    apply(store, event(ON, 10, "a", at=100), event(ON, 12, "b", at=120), event(ON, 11, "c", at=110))
    assert (user(redis)["changed_at"], user(redis)["updated_at"], user(redis)["seq"]) == ("100", "120", "12")


def test_seqs_are_exact_to_the_last_digit(store: Store, redis: Redis) -> None:
    for low, high in ((2**53, 2**53 + 1), (SEQ_MAX - 1, SEQ_MAX), (9, 10), (0, 1)):
        redis.flushdb()
        assert apply(store, event(OFF, high), event(ON, low)) == ["applied", "stale"]
        assert apply(store, event(ON, high)) == ["applied"]
        assert user(redis)["seq"] == str(high)


def test_the_feed_has_one_entry_for_each_flip(store: Store, redis: Redis) -> None:
    for each in (event(ON, 1), event(ON, 2), event(OFF, 3), event(OFF, 3), event(OFF, 4), event(ON, 5)):
        apply(store, each)
    flips = [(change["previous"], change["status"], change["seq"]) for change in changes(redis)]
    assert flips == [("", "online", "1"), ("online", "offline", "3"), ("offline", "online", "5")]
    assert redis.hmget("presence-stats", "applied", "duplicate", "stale", "changes") == [b"5", b"1", None, b"3"]
    assert redis.hget("presence-stats", "users_online") == b"1"
    assert redis.hget("presence-stats", "lag:inf") == b"5"  # of what was applied; these were received in 1970


def test_closed_connections_beyond_32_are_forgotten_behind_a_floor(store: Store, redis: Redis) -> None:
    apply(store, *(event(OFF, seq, f"c{seq}") for seq in range(1, 41)))
    assert sum(name.startswith("c:") for name in user(redis)) == 32
    assert apply(store, event(ON, 8, "c1"), event(OFF, 8, "new"), event(ON, 8, "new")) == ["stale"] * 3
    assert apply(store, event(OFF, 9, "c9"), event(ON, 41, "c1")) == ["duplicate", "applied"]
    assert user(redis)["sessions"] == "1"


def test_sessions_are_bounded_at_256(store: Store, redis: Redis) -> None:
    apply(store, *(event(ON, seq, f"c{seq}") for seq in range(1, 301)))
    assert user(redis)["sessions"] == "256"
    apply(store, *(event(OFF, seq + 1000, f"c{seq}") for seq in range(45, 301)))
    assert (user(redis)["sessions"], user(redis)["status"]) == ("0", "offline")


def test_the_feed_is_trimmed(redis: Redis) -> None:
    store = Store(redis, Settings(changes_maxlen=100))
    apply(store, *(event(ON, 1, user=f"u{number}") for number in range(2000)))
    assert 100 <= redis.xlen("presence-changes") < 300


def test_a_poison_event_fails_alone(store: Store, redis: Redis) -> None:
    redis.set("presence:bad", "not a hash")
    results = store.apply([event(OFF, 1, user="a"), event(OFF, 1, user="bad"), event(OFF, 1, user="b")])
    assert [type(result) for result in results] == [Outcome, Poison, Outcome]
    assert "WRONGTYPE" in str(results[1])
    assert user(redis, "a")["status"] == user(redis, "b")["status"] == "offline"


def test_a_feed_of_a_wrong_type_is_an_outage_and_loses_nothing(store: Store, redis: Redis) -> None:
    redis.set("presence-changes", "in the way")
    with pytest.raises(Unavailable, match="presence-changes is not a stream"):
        store.apply([event(ON, 1)])
    assert user(redis) == {}
    redis.delete("presence-changes")
    assert apply(store, event(ON, 1)) == ["applied"]
    assert len(changes(redis)) == 1


def test_the_function_is_loaded_again_when_the_server_has_lost_it(store: Store, redis: Redis) -> None:
    apply(store, event(ON, 1))
    redis.function_flush()
    assert apply(store, event(OFF, 2)) == ["applied"]


def test_a_server_that_refuses_to_write_is_an_outage(server: Server, store: Store, redis: Redis) -> None:
    redis.replicaof("127.0.0.1", "1")
    try:
        with pytest.raises(Unavailable):
            store.apply([event(ON, 1)])
    finally:
        redis.replicaof("no", "one")
    redis.config_set("maxmemory", "1")
    try:
        with pytest.raises(Unavailable):
            store.apply([event(ON, 1)])
    finally:
        redis.config_set("maxmemory", "0")
    assert apply(store, event(ON, 1)) == ["applied"]


def test_a_server_without_functions_is_too_old(tmp_path: Path) -> None:
    old = Server(tmp_path, rename_command=("FUNCTION", ""))
    try:
        with pytest.raises(SettingsError, match=r"7\.0"):
            Store(old.client, Settings()).prepare()
        with pytest.raises(Unavailable, match=r"7\.0"):  # an event outlives the wrong server
            Store(old.client, Settings()).apply([event(ON, 1)])
    finally:
        old.kill()


def test_a_user_known_only_as_offline_is_small(store: Store, redis: Redis) -> None:
    name = "4194304123456789012"
    offline = Event(name, OFF, 1732345678901, "", 2, "Android", "1732345678901234567-openim", 1732345678955)
    apply(store, offline)
    assert redis.memory_usage(f"presence:{name}", samples=0) < 450


def state(redis: Redis) -> tuple[str, ...]:
    found = user(redis)
    return found["status"], found["sessions"], found["platforms"], found["seq"]


def expected(memory: model.Memory, events: Sequence[Event]) -> tuple[str, ...]:
    sessions, platforms = memory.openings(), ",".join(map(str, memory.platforms()))
    return "online" if sessions else "offline", str(len(sessions)), platforms, str(model.newest_seq(events))


scopes = st.sampled_from(
    [("", 0), ("", 1), ("", 2), ("a", 0), ("a", 1), ("a", 2), ("b", 1), ("b", 2), ("c", 0), ("d", 1)]
)
seqs = st.one_of(
    st.integers(0, 6),
    st.integers(2**53 - 2, 2**53 + 3),
    st.integers(SEQ_MAX - 4, SEQ_MAX),
)
event_lists = st.lists(
    st.builds(
        lambda command, seq, scope: event(command, seq, *scope),
        st.sampled_from([ON, OFF, KICK]),
        seqs,
        scopes,
    ),
    min_size=1,
    max_size=14,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(event_lists, st.randoms(use_true_random=False))
def test_every_order_ends_in_what_the_model_says(
    store: Store, redis: Redis, events: list[Event], shuffler: random.Random
) -> None:
    for order in histories.orders(events + histories.again(events, shuffler), 4, shuffler):
        redis.delete("presence:u")
        for some in histories.deliveries(order, shuffler):
            apply(store, *some)
        assert state(redis) == expected(model.Memory(events), events)


examples = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@examples
@given(histories.few_batches(), st.randoms(use_true_random=False))
def test_every_order_of_four_batches_ends_in_what_the_model_says(
    store: Store, redis: Redis, events: list[Event], shuffler: random.Random
) -> None:
    for order in histories.orders(events + histories.again(events, shuffler), 3, shuffler):
        redis.delete("presence:u")
        for some in histories.deliveries(order, shuffler):
            apply(store, *some)
        assert state(redis) == expected(model.Memory(events), events)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(histories.few_batches(), st.randoms(use_true_random=False))
def test_workers_that_are_at_one_user_at_the_same_time_end_in_that_too(
    server: Server, redis: Redis, events: list[Event], shuffler: random.Random
) -> None:
    redis.delete("presence:u")
    order = shuffler.sample(events, len(events)) + histories.again(events, shuffler)
    stores = [Store(connect(server.url), Settings()) for _ in range(3)]
    with ThreadPoolExecutor(len(stores)) as workers:
        list(workers.map(Store.apply, itertools.cycle(stores), histories.deliveries(order, shuffler)))
    assert state(redis) == expected(model.Memory(events), events)


@examples
@given(histories.many_batches(), st.randoms(use_true_random=False))
def test_batches_that_are_up_to_four_late_are_not_late(
    store: Store, redis: Redis, history: list[list[Event]], shuffler: random.Random
) -> None:
    redis.delete("presence:u")
    events = histories.up_to_four_late(history, shuffler)
    for some in histories.deliveries(events, shuffler):
        apply(store, *some)
    assert state(redis) == expected(model.Memory(events), events)
    for some in histories.deliveries(histories.again(events, shuffler), shuffler):  # some of which is summed up
        apply(store, *some)
        assert state(redis) == expected(model.Memory(events), events)


@examples
@given(histories.anything(), st.randoms(use_true_random=False))
def test_batches_that_come_later_than_that_are_read_as_far_as_they_are_remembered(
    store: Store, redis: Redis, events: list[Event], shuffler: random.Random
) -> None:
    redis.delete("presence:u")
    memory, came = model.Memory(remembered=model.REMEMBERED), []
    for some in histories.deliveries(events + histories.again(events, shuffler), shuffler):
        apply(store, *some)
        memory.add(some)
        came += some
        assert state(redis)[:3] == expected(memory, came)[:3]
    assert sum(name.startswith("b:") for name in user(redis)) <= model.REMEMBERED


def test_what_is_older_than_the_retention_opens_nothing(redis: Redis) -> None:
    store, now = Store(redis, Settings(retention_seconds=100)), time.time_ns() // 1_000_000
    late = now - 101_000
    assert apply(store, event(ON, 5, "a", 1, at=late), event(ON, 6, platform_id=1, at=late)) == ["stale", "stale"]
    assert user(redis) == {}
    # An offline event of that age makes the user known, but no event of that age may open a session.
    assert apply(store, event(OFF, 4, at=late), event(ON, 5, "a", 1, at=late)) == ["applied", "stale"]
    assert apply(store, event(ON, 7, "a", 1, at=now - 99_000)) == ["applied"]
    assert user(redis)["status"] == "online"
    assert apply(store, event(ON, 8, "b", 1, at=late)) == ["applied"]  # of a user who is remembered
