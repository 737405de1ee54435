"""What a real OpenIM 3.8.2 and later sends within one second, and what presence concludes from it."""

import random
from itertools import permutations

import pytest
from redis import Redis
from support import on_one_server

from shared import memory
from shared.events import Event
from shared.observe.counters import Stats
from shared.settings import Settings
from shared.why import judgement
from worker.store.store import Outcome, Store

pytestmark = on_one_server

ON, OFF, KICK = (
    "callbackAfterUserOnlineCommand",
    "callbackAfterUserOfflineCommand",
    "callbackAfterUserKickOffCommand",
)
_ids = iter(range(10**6))


@pytest.fixture
def store(redis: Redis) -> Store:
    return Store(redis, Settings())


def on(batch: str, seq: int, platform: int = 1, command: str = ON) -> Event:
    return Event("u", command, seq, "", platform, "", batch, 10_000 + seq, f"{next(_ids):x}")  # type: ignore[arg-type]


def off(batch: str, seq: int, platform: int = 1) -> Event:
    return on(batch, seq, platform, OFF)


def kick(batch: str, seq: int, platform: int = 1) -> Event:
    return on(batch, seq, platform, KICK)


def platforms(redis: Redis) -> str:
    status, found = redis.hmget("presence:u", "status", "platforms")
    assert (status == b"online") == bool(found)
    return found.decode()


def outcomes(results: list[object]) -> list[str]:
    return [each.name for each in results if isinstance(each, Outcome)]


def flips(redis: Redis) -> list[tuple[str, str]]:
    entries = redis.xrange("presence-changes")
    return [(entry[b"previous"].decode(), entry[b"status"].decode()) for _, entry in entries]


@pytest.mark.parametrize(
    ("before", "batch", "expected"),
    [
        ([], [on("b", 100), off("b", 100)], ""),  # in and out within a second
        ([], [on("b", 101), off("b", 100)], ""),  # whatever their milliseconds
        ([on("a", 50)], [on("b", 100), off("b", 100)], "1"),  # the older of two connections ends
        ([on("a", 50)], [on("b", 100), off("b", 101)], "1"),  # a millisecond later, too
        ([on("a", 50)], [off("b", 100)], ""),
        ([], [on("b", 100), on("b", 100), off("b", 100)], "1"),  # a kick: more online than offline
        ([on("a", 50)], [on("b", 100), off("b", 100), off("b", 100)], ""),
        ([], [on("b", 100), kick("b", 110)], "1"),  # 2.3.2: the kick-off comes after the new connection
        ([], [kick("b", 110)], ""),
        ([], [on("b", 100), kick("b", 110), off("b", 110)], ""),
        # As many of both, and it was online; but something else of the user changes, so this changed as well.
        ([on("a", 50)], [on("b", 100), off("b", 100), off("b", 100, 5)], ""),
        ([on("a", 50)], [on("b", 100), off("b", 100), on("b", 100, 5)], "5"),
        ([on("a", 50), on("c", 51, 5)], [on("b", 100), off("b", 100), on("b", 100, 5)], "1,5"),
        ([on("a", 50), on("c", 51, 5)], [on("b", 100), off("b", 100), on("b", 100, 5), off("b", 100, 5)], ""),
        ([on("a", 50, 12), on("c", 51, 5)], [on("b", 100)], "1,5,12"),
        # Two containers with one operationID, at different times.
        ([on("b", 50)], [off("b", 50 + 60_000)], ""),
        ([off("b", 50)], [on("b", 50 + 60_000)], "1"),
        ([on("b", 50)], [off("b", 50 + 59_999)], ""),
        # No operationID makes no batch: a tie goes to online.
        ([], [on("", 100), off("", 100)], "1"),
    ],
)
def test_a_batch_says_where_its_user_ended(
    store: Store, redis: Redis, before: list[Event], batch: list[Event], expected: str
) -> None:
    for together in (True, False):
        for order in permutations(range(len(batch))):
            redis.delete("presence:u")
            store.apply(before)
            events = [batch[index] for index in order]
            for each in [events] if together else [[event] for event in events]:
                store.apply(each)
            assert platforms(redis) == expected, (together, order)


def test_what_is_delivered_again_does_not_count_again(store: Store, redis: Redis) -> None:
    came, left, another = on("b", 100), off("b", 100), on("b", 100)
    store.apply([came, left])
    assert outcomes(store.apply([came, left])) == ["duplicate", "duplicate"]
    assert platforms(redis) == ""
    store.apply([another])  # OpenIM named the platform twice
    assert platforms(redis) == "1"


@pytest.mark.parametrize(
    ("steps", "kept", "closed"),
    [
        ([[on("b", 100), off("b", 100)]], 0, 1),
        ([[on("a", 50)], [on("b", 100), off("b", 100)]], 1, 0),
        ([[on("b", 100)], [off("b", 101), on("b", 100, 5)]], 0, 1),  # in two steps
        ([[on("b", 100), off("b", 100), on("b", 100, 5), off("b", 100, 5), on("b", 100, 5)]], 1, 1),  # each platform
        ([[on("b", 100), off("b", 100), on("c", 200), off("c", 200)]], 0, 2),  # each batch
        ([[on(f"{seq}", seq) for seq in range(5)], [on("c", 200), off("c", 200)]], 1, 0),
        ([[on(f"{seq}", seq), off(f"{seq}", seq)] for seq in range(9)], 0, 9),  # those that are summed up, too
        ([[on("b", 100), kick("b", 110)]], 0, 0),  # a kick says how it ended
        ([[on("b", 100), off("c", 100)]], 0, 0),
        ([[on("", 100), off("", 100)]], 0, 0),
    ],
)
def test_how_a_batch_that_says_both_was_read_is_counted(
    store: Store, redis: Redis, steps: list[list[Event]], kept: int, closed: int
) -> None:
    ambiguous = sum(each.is_ambiguous for step in steps for each in store.apply(step) if isinstance(each, Outcome))
    assert bool(ambiguous) == bool(kept + closed)
    assert ambiguous <= len(steps)
    again = store.apply(steps[-1])  # what is delivered again does not count again
    assert not any(isinstance(each, Outcome) and each.is_ambiguous for each in again)
    assert Stats.of(redis.hgetall("presence-stats")).ambiguous == {"kept": kept, "closed": closed}


def test_an_online_event_that_a_newer_offline_event_covers_is_stale(store: Store, redis: Redis) -> None:
    store.apply([off("b", 100)])
    assert outcomes(store.apply([on("a", 50)])) == ["stale"]
    assert platforms(redis) == ""


def test_a_receiver_without_ids_is_told_by_the_time(store: Store, redis: Redis) -> None:
    came = on("b", 100)._replace(id="")
    left = off("b", 100)._replace(id="")
    store.apply([came, left, came])
    assert platforms(redis) == ""
    store.apply([came._replace(received_at=came.received_at + 3)])
    assert platforms(redis) == "1"


def test_batches_that_are_summed_up_are_not_opened_by_what_is_delivered_again(store: Store, redis: Redis) -> None:
    in_and_out = [on("b", 100), off("b", 100)]
    store.apply(in_and_out)
    later = [event for n in range(6) for event in (on(f"c{n}", 200 + n, 5), off(f"c{n}", 200 + n, 5))]
    store.apply(later)
    assert platforms(redis) == ""
    for event in in_and_out + later:
        store.apply([event])
        assert platforms(redis) == ""
    fields = redis.hgetall("presence:u")
    assert sum(name.startswith(b"b:") for name in fields) == 4


def test_one_operation_id_at_two_times_is_summed_up_as_two_batches(store: Store, redis: Redis) -> None:
    came, left = on("b", 59_998, 3), off("b", 1, 3)
    store.apply([came, on("c", 120_000, 2), off("d", 120_000, 1)])
    store.apply([off("e", 120_000, 1), left, on("b", 120_000, 2)])  # which divides what is remembered of "b"
    assert platforms(redis) == "2"
    store.apply([came])  # once more, now that its batch is summed up
    assert platforms(redis) == "2"


def test_the_newest_four_batches_take_late_events(store: Store, redis: Redis) -> None:
    store.apply([on("b1", 100), off("b2", 200), on("b3", 300, 2), off("b4", 400, 2)])
    assert platforms(redis) == ""
    store.apply([on("b2", 200), on("b2", 200)])
    assert platforms(redis) == "1"
    store.apply([on("b4", 400, 2)])  # as many of both, and it was online before
    assert platforms(redis) == "1,2"


def test_readers_see_what_a_batch_came_to(store: Store, redis: Redis) -> None:
    store.apply([on("a", 50)])
    results = store.apply([off("b", 100), on("b", 100), on("b", 100)])  # a kick, in the worst order
    assert outcomes(results)[:2] == ["applied", "applied"]
    assert flips(redis) == [("", "online")]
    store.apply([off("c", 200), on("d", 300), off("e", 400)])
    assert flips(redis)[1:] == [("online", "offline")]
    assert redis.hget("presence-stats", "changes") == b"2"
    assert redis.hget("presence-stats", "users_online") == b"0"


def test_hashes_of_older_releases_are_read(store: Store, redis: Redis) -> None:
    fields = {"status": "online", "seq": "100", "updated_at": "1", "changed_at": "1", "command": ON, "sessions": "1"}
    redis.hset("presence:u", mapping={**fields, "p:1": "100 - 1", "p:2": "90 95 2"})
    store.apply([on("b", 200), off("b", 200)])
    assert platforms(redis) == "1"
    store.apply([off("c", 300)])
    assert platforms(redis) == ""


def test_what_a_worker_of_an_older_release_has_written_meanwhile_counts(store: Store, redis: Redis) -> None:
    store.apply([on("a", 100)])
    redis.hset("presence:u", mapping={"p:1": "100 300 1", "p:5": "310 - 5", "seq": "310", "sessions": "1"})
    store.apply([on("a", 100)])  # of a batch that is remembered: all of them are read
    assert platforms(redis) == "5"
    store.apply([off("b", 400, 5)])
    assert platforms(redis) == ""


@pytest.mark.parametrize("operation_id", ["", " ", "a b", "b\n", "p_1_2", "ä" * 300, "%d %s", "1 n1.x", "-"])
def test_an_operation_id_of_any_form_fails_nothing(store: Store, redis: Redis, operation_id: str) -> None:
    events = [on(operation_id, 100), on(operation_id, 101, 5), on(operation_id, 102)]
    assert outcomes(store.apply(events)) == ["applied"] * 3
    store.apply([on("later", 300, 7)])
    assert platforms(redis) == "1,5,7"


@pytest.mark.parametrize("span", [50_000, 500_000])
def test_a_batch_without_end_is_bounded(store: Store, redis: Redis, span: int) -> None:
    rng = random.Random(1)
    for _ in range(40):
        store.apply([rng.choice((on, off))("one", rng.randrange(span), rng.randrange(1, 12)) for _ in range(100)])
    assert max(len(value) for value in redis.hgetall("presence:u").values()) < (64 + 3 * 11) * 24


@pytest.mark.parametrize(
    ("onlines", "offlines", "expected"),
    [((64, 100), (1, 101), "1"), ((63, 100), (64, 100), ""), ((128, 100), (3, 101), "1"), ((3, 100), (200, 100), "")],
)
def test_a_batch_of_many_events_is_read_as_one(
    store: Store, redis: Redis, onlines: tuple[int, int], offlines: tuple[int, int], expected: str
) -> None:
    """So many come if a user has dozens of connections: each change repeats the online event of all that are left."""
    (online, on_seq), (offline, off_seq) = onlines, offlines
    events = [on("one", on_seq)] * online + [off("one", off_seq)] * offline
    events = [event._replace(id=f"{number:x}") for number, event in enumerate(events)]
    for seed in range(5):
        redis.delete("presence:u")
        random.Random(seed).shuffle(events)
        for start in range(0, len(events), 17):
            store.apply(events[start : start + 17])
        assert platforms(redis) == expected
        (reading,) = judgement.read_batches(memory.read(redis.hgetall("presence:u")))[0].readings
        assert (reading.online, reading.offline) == (online, offline)


def test_seqs_past_a_double_are_told_apart(store: Store, redis: Redis) -> None:
    high = 2**63 - 1
    store.apply([on("b", high - 60_000), off("b", high)])  # 60 s apart: two batches
    assert platforms(redis) == ""
    redis.delete("presence:u")
    store.apply([on("b", high - 59_999), on("b", high - 59_999), off("b", high)])  # one
    assert platforms(redis) == "1"
