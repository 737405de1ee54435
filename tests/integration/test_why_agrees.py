"""`presence why` reads in a user's hash what the store wrote there, whatever happened to the user."""

import random

import histories
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis
from support import on_one_server

from shared import memory
from shared.events import Event
from shared.settings import Settings
from shared.why import judgement
from worker.store.store import Store

pytestmark = on_one_server
LEASE_SECONDS = 30
examples = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def store(redis: Redis) -> Store:
    return Store(redis, Settings())


@pytest.fixture
def leased(redis: Redis) -> Store:
    return Store(redis, Settings(online_lease_seconds=LEASE_SECONDS))


def check(redis: Redis) -> None:
    fields = redis.hgetall("presence:u")
    if not fields:
        return
    found = memory.read(fields)
    online = [each for each in judgement.sessions(found) if each.is_online]
    assert found.unreadable == ()
    assert found.fields["status"] == ("online" if online else "offline")
    assert found.fields["sessions"] == str(len(online))
    assert found.fields["platforms"] == ",".join(map(str, judgement.platforms(found)))
    kept = {each.platform_id: (each.online_seq, each.offline_seq) for each in found.records if each.scope == "platform"}
    settled = judgement.settled(found)
    assert {each: settled.get(each, (None, None)) for each in kept} == kept


def play(store: Store, redis: Redis, events: list[Event], shuffler: random.Random) -> None:
    redis.delete("presence:u")
    for some in histories.deliveries(events + histories.again(events, shuffler), shuffler):
        store.apply(some)
        check(redis)


@examples
@given(histories.few_batches(), st.randoms(use_true_random=False))
def test_of_few_batches(store: Store, redis: Redis, events: list[Event], shuffler: random.Random) -> None:
    play(store, redis, shuffler.sample(events, len(events)), shuffler)


@examples
@given(histories.many_batches(), st.randoms(use_true_random=False))
def test_of_many_batches(store: Store, redis: Redis, history: list[list[Event]], shuffler: random.Random) -> None:
    play(store, redis, histories.up_to_four_late(history, shuffler), shuffler)


@examples
@given(histories.anything(), st.randoms(use_true_random=False))
def test_of_anything(store: Store, redis: Redis, events: list[Event], shuffler: random.Random) -> None:
    play(store, redis, events, shuffler)


@examples
@given(histories.anything(), st.lists(st.integers(0, 100_000), max_size=6), st.randoms(use_true_random=False))
def test_of_leases_that_run_out(
    leased: Store, redis: Redis, events: list[Event], sweeps: list[int], shuffler: random.Random
) -> None:
    redis.delete("presence:u")
    for some in histories.deliveries(events, shuffler):
        leased.apply(some)
        check(redis)
        if sweeps and shuffler.random() < 0.5:
            until = sweeps.pop()
            leased.review(["u"], until, until)
            check(redis)


def test_of_connections_that_are_forgotten(store: Store, redis: Redis) -> None:
    for number in range(50):
        for later, kind in enumerate(("Online", "Offline")):
            command, seq = f"callbackUser{kind}Command", 2 * number + later
            store.apply([Event("u", command, seq, f"c{number}", 1, "", "", 1)])  # type: ignore[arg-type]
            check(redis)
    found = memory.read(redis.hgetall("presence:u"))
    assert found.floor_seq == 35
    assert len(found.records) == 32


MANY = st.tuples(st.sampled_from(["Online", "Offline"]), st.integers(0, 60), st.integers(0, 2), st.integers(0, 90))


@examples
@given(st.lists(MANY, min_size=60, max_size=200), st.randoms(use_true_random=False))
def test_of_many_connections(
    store: Store, redis: Redis, acts: list[tuple[str, int, int, int]], shuffler: random.Random
) -> None:
    events = [
        Event("u", f"callbackUser{kind}Command", seq, f"c{conn}" if conn < 58 else "", platform, "", "", 1)  # type: ignore[arg-type]
        for kind, conn, platform, seq in acts
    ]
    redis.delete("presence:u")
    for some in histories.deliveries(events, shuffler, most=20):
        store.apply(some)
        check(redis)


def test_of_more_sessions_than_are_remembered(store: Store, redis: Redis) -> None:
    for start in range(0, 300, 20):
        store.apply(
            [Event("u", "callbackUserOnlineCommand", n, f"c{n}", 1, "", "", 1) for n in range(start, start + 20)]
        )
        check(redis)
    assert redis.hget("presence:u", "sessions") == b"256"
