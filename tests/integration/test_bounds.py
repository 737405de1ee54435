"""How many connections of a user are remembered. A step that reads a part of them has the same result as a full one."""

import itertools
import random

import model
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from redis import Redis
from support import on_one_server, with_constants

from shared.events import Event
from shared.settings import Settings
from worker.store.store import Outcome, Store

ON, OFF = "callbackUserOnlineCommand", "callbackUserOfflineCommand"
TALLY = "t:1"


def event(command: str, seq: int, conn_id: str = "", platform: int = 0) -> Event:
    return Event("u", command, seq, conn_id, platform, "", "", 1_000_000 + seq, "")  # type: ignore[arg-type]


def apply(store: Store, events: list[Event]) -> list[str]:
    results = store.apply(events)
    assert all(isinstance(result, Outcome) for result in results), results
    return [result.name for result in results if isinstance(result, Outcome)]


def user(redis: Redis) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in redis.hgetall("presence:u").items()}


def connections(fields: dict[str, str]) -> set[str]:
    return {name[2:] for name in fields if name.startswith("c:")}


class Phones:
    """Connections that come and go as OpenIM's do, and in between unusual events: late, repeated, of platforms."""

    def __init__(self, chance: random.Random, unusual: float) -> None:
        self._chance, self._unusual = chance, unusual
        self._seq = 0
        self._open: list[str] = []
        self._sent: list[Event] = []

    def next(self, more: float) -> Event:
        """more: how likely a connection comes, and none goes."""
        chance, self._seq = self._chance, self._seq + 1
        if self._sent and chance.random() < self._unusual:
            found = self._unusual_event()
        elif not self._open or chance.random() < more:
            self._open.append(f"c{self._seq}")
            found = event(ON, self._seq, self._open[-1], chance.choice((0, 1, 1, 2)))
        else:
            gone = self._open.pop(chance.randrange(len(self._open)))
            found = event(OFF, self._seq, gone, chance.choice((0, 1)))
        self._sent.append(found)
        return found

    def _unusual_event(self) -> Event:
        chance = self._chance
        seq = chance.choice((self._seq, max(0, self._seq - chance.randrange(12))))
        command = chance.choice((ON, OFF))
        return chance.choice(
            (
                chance.choice(self._sent),
                chance.choice(self._sent)._replace(command=command, seq=seq),
                chance.choice(self._sent)._replace(command=command, seq=seq, platform_id=chance.randrange(3)),
                event(command, seq, f"late{seq}", chance.randrange(3)),
                event(command, seq, "", chance.randrange(1, 3)),
                event(OFF, seq),
            )
        )


def check(store: Store, redis: Redis, memory: model.Bounded, events: list[Event]) -> None:
    outcomes = zip(events, apply(store, events), memory.apply(events), strict=True)
    # Those of platforms are of batches, which is another model.
    assert all(found == wanted for event, found, wanted in outcomes if model.scope_of(event)[0] != "platform")
    fields = user(redis)
    sessions, platforms = memory.sessions(), ",".join(map(str, memory.platforms()))
    expected = ("online" if sessions else "offline", str(len(sessions)), platforms)
    assert (fields["status"], fields["sessions"], fields["platforms"]) == expected
    assert connections(fields) == memory.remembered()


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=set(Phase) - {Phase.shrink},  # which takes minutes over a server
)
@given(st.randoms(use_true_random=False), st.sampled_from([0.0, 0.05, 0.3]), st.integers(1, 3))
def test_the_newest_are_remembered_whatever_part_is_read(
    redis: Redis, chance: random.Random, unusual: float, together: int
) -> None:
    redis.delete("presence:u")
    with pytest.MonkeyPatch.context() as patch:
        with_constants(patch, CLOSED_MAX=4, ONLINE_MAX=6, TALLIED_MIN=2, QUEUED=2)
        store, memory, phones = Store(redis, Settings()), model.Bounded(closed=4, online=6), Phones(chance, unusual)
        for number in range(60):
            more = 0.8 if number // 15 % 2 else 0.4
            check(store, redis, memory, [phones.next(more) for _ in range(chance.randint(1, together))])


@on_one_server
def test_the_newest_are_remembered_with_the_bounds_as_they_are(redis: Redis) -> None:
    store, memory, phones = Store(redis, Settings()), model.Bounded(), Phones(random.Random(1), 0.02)
    for number in range(900):
        more = 0.95 if 200 < number < 700 else 0.5
        check(store, redis, memory, [phones.next(more)])


@on_one_server
def test_steps_of_many_connections_read_a_part(redis: Redis) -> None:
    """All are read only once in a while, to make the queue of those that are to be forgotten next."""
    store = Store(redis, Settings())
    numbers = itertools.count()
    while "t:c8" not in user(redis):
        n = next(numbers)
        apply(store, [event(ON, 3 * n, f"c{n}", 1), event(OFF, 3 * n + 1, f"c{n}")])
    redis.hset("presence:u", f"c:c{n}", "no record")  # reading it fails
    for n in itertools.islice(numbers, 3):
        assert apply(store, [event(ON, 3 * n, f"c{n}", 1)]) == ["applied"]
        assert apply(store, [event(OFF, 3 * n + 1, f"c{n}")]) == ["applied"]
        assert apply(store, [event(ON, 3 * n + 2, "", 1)]) == ["applied"]
    assert len(connections(user(redis))) == 32


@on_one_server
@pytest.mark.parametrize(
    "written",
    [
        {"c:old": "900 - 1", "seq": "900", "updated_at": "1000900", "command": ON, "sessions": "2", "platforms": "1,5"},
        {
            "c:now": "500 900 5",
            "seq": "900",
            "updated_at": "1000900",
            "command": OFF,
            "sessions": "0",
            "status": "offline",
        },
        {"c:old": "400 - 1", "updated_at": "1000900", "sessions": "2", "platforms": "1,5"},
        {"c:now": "500 501 5", "sessions": "0", "status": "offline", "platforms": ""},
    ],
)
def test_what_a_worker_of_an_older_release_has_written_meanwhile_counts(redis: Redis, written: dict[str, str]) -> None:
    store = Store(redis, Settings())
    for n in range(40):
        apply(store, [event(OFF, n, f"c{n}")])
    apply(store, [event(ON, 500, "now", 5)])
    assert TALLY in user(redis)
    redis.hset("presence:u", mapping=written)
    apply(store, [event(ON, 1000, "new", 2)])
    fields = user(redis)
    online = {name: text.split()[2] for name, text in fields.items() if name.startswith("c:") and " - " in text[3:]}
    assert fields["sessions"] == str(len(online))
    assert fields["platforms"] == ",".join(sorted(online.values()))


@on_one_server
def test_few_connections_have_no_tally(redis: Redis) -> None:
    """It would take memory, and save no time."""
    store = Store(redis, Settings())
    apply(store, [event(ON, n, f"c{n}", 1) for n in range(10)])
    assert TALLY not in user(redis)
