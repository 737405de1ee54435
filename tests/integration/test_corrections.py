"""Presence corrected after OpenIM was asked: a correction does what it says, and whatever was sent later wins."""

import random
from dataclasses import dataclass

import histories
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis
from support import on_one_server

from shared.events import SEQ_MAX, Event
from shared.openim.answers import Connection
from shared.settings import Settings
from shared.truth import corrections
from shared.truth.ours import NEVER, Ours, Scope, read
from shared.truth.reach import Reach
from shared.truth.verdict import Theirs, Verdict, judge
from worker.store.store import Outcome, Store

pytestmark = on_one_server

NOW = 1_764_150_000_000
FEW = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
#: What OpenIM may say: which platforms are online.
TRUTHS = st.sets(st.integers(1, 3))


def known(redis: Redis, user: str = "u") -> Ours:
    return read(user, redis.hgetall(f"presence:{user}"))


def shown(redis: Redis, user: str = "u") -> list[int]:
    platforms = redis.hget(f"presence:{user}", "platforms") or b""
    return [int(each) for each in platforms.decode().split(",") if each]


def ask(redis: Redis, truth: set[int], now: int = NOW) -> Verdict | None:
    """The verdict if OpenIM's record agrees with its answer, so that all is proven."""
    return judge(known(redis), Theirs(dict.fromkeys(truth, 1), recorded=sorted(truth)), Reach({}, now), now)


def correct(redis: Redis, store: Store, truth: set[int], now: int = NOW) -> list[Event]:
    verdict = ask(redis, truth, now)
    events = corrections.events(verdict, now) if verdict else []
    assert all(isinstance(each, Outcome) and each.name == "applied" for each in store.apply(events))
    return events


def callback(kind: str, seq: int, platform_id: int, conn_id: str = "") -> Event:
    command = histories.ON if kind == "online" else histories.OFF
    return Event("u", command, seq, conn_id, platform_id, "", f"p_7_{seq % 10**9}", 1, f"{seq}", "10.0.0.7")  # type: ignore[arg-type]


@dataclass
class Step:
    """Callbacks that come together, and then perhaps a question to OpenIM with its answer."""

    callbacks: list[Event]
    truth: set[int] | None


@st.composite
def plans(draw: st.DrawFn) -> list[Step]:
    """Callbacks in any order, some twice, with questions in between. Each callback is a batch of its own."""
    base = draw(st.sampled_from([0, NOW - 1000, 2**53 - 4, SEQ_MAX - 20]))
    seqs = draw(st.lists(st.integers(base, base + 12), min_size=1, max_size=8, unique=True))
    sent = [callback(draw(st.sampled_from(["online", "offline"])), seq, draw(st.integers(1, 3))) for seq in seqs]
    delivered = draw(st.permutations([*sent, *draw(st.lists(st.sampled_from(sent), max_size=4))]))
    steps = []
    while delivered:
        count = draw(st.integers(1, 3))
        steps.append(Step(delivered[:count], draw(st.one_of(st.none(), TRUTHS))))
        delivered = delivered[count:]
    return steps


@FEW
@given(plan=plans())
def test_the_callback_that_was_sent_later_wins_always(redis: Redis, plan: list[Step]) -> None:
    redis.flushall()
    store = Store(redis, Settings())
    heard: list[Event] = []
    #: For each platform, the highest seq that a question found there and corrected.
    corrected: dict[int, int] = {}
    for number, step in enumerate(plan):
        assert all(isinstance(each, Outcome) for each in store.apply(step.callbacks))
        heard += step.callbacks
        if step.truth is not None:
            before = known(redis)
            for event in correct(redis, store, step.truth, NOW + number * 10_000):
                scope = Scope(event.platform_id)
                found = before.covering(scope) if event.kind == "online" else before.marks[scope].on
                if found == NEVER:  # of an online event, where nothing is known of the platform
                    found = event.seq
                assert event.seq in (found, found + 1)
                corrected[event.platform_id] = max(found, corrected.get(event.platform_id, NEVER))
            assert shown(redis) == sorted(step.truth)
    for platform_id in {event.platform_id for event in heard}:
        last = max((event for event in heard if event.platform_id == platform_id), key=lambda event: event.seq)
        if last.seq > corrected.get(platform_id, NEVER):
            assert (platform_id in shown(redis)) == (last.kind == "online")


@FEW
@given(
    sent=st.lists(st.tuples(st.sampled_from(["online", "offline"]), st.sampled_from("abc")), min_size=1, max_size=8),
    seed=st.integers(0, 2**16),
    truth=st.sets(st.sampled_from("abcd")),
)
def test_where_sessions_are_connections_each_is_put_right(
    redis: Redis, sent: list[tuple[str, str]], seed: int, truth: set[str]
) -> None:
    redis.flushall()
    store, shuffler = Store(redis, Settings()), random.Random(seed)
    callbacks = [callback(kind, NOW - 900 + 2 * number, 1, conn_id) for number, (kind, conn_id) in enumerate(sent)]
    store.apply(shuffler.sample(callbacks, shuffler.randint(0, len(callbacks))))
    theirs = Theirs({1: len(truth)} if truth else {}, [Connection(1, conn_id) for conn_id in truth], is_old=True)
    before = known(redis)
    once = judge(before, theirs, Reach({}, NOW), NOW)
    twice = judge(before, theirs, Reach({}, NOW), NOW, first=once)
    store.apply(corrections.events(twice, NOW) if twice else [])
    assert {scope.conn_id for scope in known(redis).sessions()} == truth
    assert judge(known(redis), theirs, Reach({}, NOW), NOW + 10_000) is None
    store.apply(shuffler.sample(callbacks, len(callbacks)))
    online = {scope.conn_id for scope in known(redis).sessions()}
    for conn_id in "abc":
        last = max(
            (event for event in callbacks if event.conn_id == conn_id), key=lambda event: event.seq, default=None
        )
        seen = [max(mark.on, mark.off) for scope, mark in before.marks.items() if scope.conn_id == conn_id]
        if last and last.seq > max(seen, default=NOW - 60_000):  # what is not known is opened with that
            assert (conn_id in online) == (last.kind == "online")


@FEW
@given(history=histories.anything(), truth=TRUTHS, seed=st.integers(0, 2**16))
def test_a_correction_holds_though_all_before_it_is_delivered_again(
    redis: Redis, history: list[Event], truth: set[int], seed: int
) -> None:
    """Whatever is remembered of the user: batches, their sums, connections, events of the whole user."""
    redis.flushall()
    store, shuffler = Store(redis, Settings()), random.Random(seed)
    history = [event._replace(user_id="u", received_at=1) for event in history]
    for some in histories.deliveries(history, shuffler):
        store.apply(some)
    before = known(redis)
    if any(scope.platform_id == 0 and mark.on > NEVER for scope, mark in before.marks.items()):
        return  # of a session without a platform, platforms are not compared
    if any(mark.on == SEQ_MAX for mark in before.marks.values()):
        return
    done = correct(redis, store, truth)
    assert shown(redis) == sorted(truth)
    assert ask(redis, truth, NOW + 10_000) is None
    store.apply(done)
    assert shown(redis) == sorted(truth)
    for some in histories.deliveries(histories.again(history, shuffler), shuffler):
        store.apply(some)
    assert shown(redis) == sorted(truth)


def test_a_correction_is_no_part_of_a_batch_that_was_summed_up(redis: Redis) -> None:
    """If that batch named the platform both online and offline, and said offline, only its seq is remembered."""
    store = Store(redis, Settings())
    mixed = [
        histories.of_batch(kind, 10, 1, "op0", number) for number, kind in enumerate([histories.ON, histories.OFF])
    ]
    store.apply(mixed)
    for number in range(1, 6):
        store.apply([histories.of_batch(histories.ON, 10 + number, 2, f"op{number}")])
    assert shown(redis) == [2]
    [event] = correct(redis, store, {1, 2})
    assert (event.command, event.seq) == ("reconciled_online", 10)
    assert shown(redis) == [1, 2]
    store.apply(mixed)
    assert shown(redis) == [1, 2]
