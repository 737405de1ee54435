"""What OpenIM did not tell: gateway processes, and the numbers of their batches."""

import gzip
import json
import random
from collections import defaultdict
from typing import Any

import pytest
from support import ROOT

from shared.events import Event
from shared.gateways import (
    LOST_MS,
    MOST_STRETCHES,
    SILENT_MS,
    Gateway,
    Heard,
    Process,
    batch_of,
    decode,
    decode_all,
    encode,
    heard_in,
    view,
)

PEER, NOW = "10.0.0.7", 1_764_150_000_000
BOTH = {"online", "offline"}


def process(*heard: tuple[int, int], kinds: Any = BOTH) -> Process:
    """A gateway process of which these were heard: number, and seconds before NOW."""
    found: Process | None = None
    for number, before in heard:
        at = NOW - before * 1000
        found = found or Process(at, at)
        found.hear(number, at, at, kinds)
    assert found
    return found


def seen(now: int = NOW, **processes: Process) -> list[Gateway]:
    return view({(PEER, int(name[1:])): each for name, each in processes.items()}, now)


def test_an_operation_id_names_a_process_and_a_number() -> None:
    assert batch_of("p_19117_2") == (19117, 2)
    others = ("", "p_", "p_1", "p_1_", "p__1", "p_1_2_3", "P_1_2", "p_1_2x", "x_1_2", "p_1_\u0662", "p_1_" + "9" * 40)
    assert [batch_of(other) for other in others] == [None] * len(others)


@pytest.mark.parametrize(
    ("heard", "lost"),
    [
        ([(1, 60), (2, 59), (3, 58)], 0),
        ([(7, 60), (8, 59)], 0),  # what was before the first is not known
        ([(1, 60), (4, 58)], 2),
        ([(1, 60), (4, 14)], 0),  # the numbers between may still come
        ([(4, 58), (1, 60), (2, 59), (3, 58)], 0),
        ([(1, 60), (3, 50), (7, 40), (9, 5)], 4),  # of the last gap nothing is known yet
        ([(1, 60), (5, 10), (3, 50)], 1),  # 3 shows that 2 was lost; 4 may come
    ],
)
def test_a_number_that_does_not_come_after_a_higher_one_was_lost(heard: list[tuple[int, int]], lost: int) -> None:
    (gateway,) = seen(p1=process(*heard))
    assert (gateway.lost, gateway.heard, gateway.note) == (lost, len(heard), "")


def test_what_is_heard_again_counts_once_and_in_any_order() -> None:
    numbers = [(number, 400 - number) for number in range(1, 300) if number % 7]
    in_order = seen(p1=process(*numbers))
    rng = random.Random(1)
    shuffled = sorted(numbers, key=lambda each: each[0] + rng.random() * 60)
    again = process(*shuffled[:90], *shuffled)
    (gateway,) = seen(p1=decode(encode(again).encode()))
    assert gateway.lost == in_order[0].lost == 42
    assert gateway.heard == in_order[0].heard == len(numbers)


def test_a_number_thought_lost_that_comes_late_is_not_lost() -> None:
    late = process((1, 600), (3, 598), (4, 400))
    assert seen(p1=late)[0].lost == 1
    late.hear(2, NOW - 599_000, NOW - 599_000, {"online"})
    (gateway,) = seen(p1=late)
    assert (gateway.lost, gateway.most_lost) == (0, 1), "and a counter never goes back"


@pytest.mark.parametrize(("kinds", "word"), [({"online"}, "online"), ({"offline"}, "offline")])
def test_where_one_kind_alone_is_enabled_gaps_are_usual(kinds: set[str], word: str) -> None:
    (gateway,) = seen(p1=process((1, 60), (9, 50), kinds=kinds))
    assert (gateway.lost, gateway.most_lost) == (None, 0)
    assert gateway.note.startswith(f"only {word} callbacks came")


def test_a_process_is_silent_after_twenty_times_its_usual_interval_and_a_minute_at_least() -> None:
    each_second = process(*((n, 700 - n) for n in range(1, 600)))  # the last of them 101 s ago
    assert seen(p1=each_second)[0].state == "silent"
    assert seen(NOW - 42_000, p1=each_second)[0].state == "live"  # 59 s after its last
    each_ten = process(*((n, 1300 - 10 * n) for n in range(1, 121)))
    assert seen(p1=each_ten)[0].state == "live"  # 100 s after its last
    assert seen(NOW + 120_000, p1=each_ten)[0].state == "silent"
    rare = process((1, 9000), (2, 6000), (3, 1200))
    assert seen(p1=rare)[0].state == "live"
    assert seen(NOW - 1_200_000 + SILENT_MS + 1, p1=rare)[0].state == "silent"


def test_a_process_is_restarted_where_its_peer_has_another_pid_and_the_old_one_is_heard_no_more() -> None:
    old, new = process((1, 300), (2, 200)), process((1, 100), (2, 30))
    states = {each.pid: each.state for each in seen(p1=old, p2=new)}
    assert states == {1: "restarted", 2: "live"}
    beside = process((1, 300), (2, 30))  # two gateways on one machine
    assert {each.state for each in seen(p1=beside, p2=new)} == {"live"}


def test_a_process_is_restarted_where_its_numbers_go_back_to_the_beginning() -> None:
    before = [(n, 3000 - n) for n in range(900, 1000)]
    after = [(n, 1500 - n) for n in range(1, 20)]
    found = seen(NOW - 1_470_000, p1=process(*before, *after))
    assert [(each.state, each.heard, each.lost) for each in found] == [("live", 19, 0), ("restarted", 100, 0)]


def test_of_two_processes_with_one_address_and_pid_nothing_is_concluded() -> None:
    both = [(n, 2000 - n) for n in range(900, 1000)] + [(n - 800, 1999 - n) for n in range(850, 1000) if n % 3]
    (gateway,) = seen(p1=process(*sorted(both, key=lambda each: -each[1])))
    assert (gateway.lost, gateway.most_lost) == (None, 0)
    assert "two processes" in gateway.note


def test_what_is_kept_is_bounded() -> None:
    rng = random.Random(2)
    hostile = process((1, 60))
    for _ in range(3000):
        at = NOW + rng.randrange(10**9)
        hostile.hear(rng.randrange(10**14), rng.randrange(2**63), at, BOTH)
    odd = process(*((2 * n, 1000 - n) for n in range(1, 900)))
    assert len(odd.runs[0].stretches) <= MOST_STRETCHES
    assert seen(p1=odd)[0].lost == 898
    for each in (hostile, odd):
        assert len(encode(each)) < 20_000


def test_what_cannot_be_read_is_passed_over() -> None:
    good = encode(process((1, 60))).encode()
    fields = {b"10.0.0.7 1": good, b"nonsense": good, b"10.0.0.7 2": b"{}", b"\xff 3": b"1", b"10.0.0.7 4": b"[]"}
    assert set(decode_all(fields)) == {(PEER, 1)}


def events_of(name: str) -> list[Event]:
    with gzip.open(ROOT / "tests" / "recordings" / f"{name}.json.gz") as file:
        calls = json.load(file)["calls"]
    return [
        Event(user, f"callbackAfterUser{kind.title()}Command", seq, "", platform, "", operation, seq, f"{n}", PEER)
        for n, (_, kind, user, platform, seq, operation) in enumerate(calls)
    ]


def heard(events: list[Event]) -> dict[tuple[str, int], Process]:
    """In jobs of some events, as workers see them."""
    processes: dict[tuple[str, int], Process] = {}
    for start in range(0, len(events), 100):
        for name, batches in heard_in(events[start : start + 100]).items():
            for number, batch in batches.items():
                known = processes.setdefault(name, Process(batch.at_ms, batch.at_ms))
                known.hear(number, batch.seq, batch.at_ms, batch.kinds)
    return processes


@pytest.mark.parametrize("name", ["churn-600", "churn-400", "churn-main"])
def test_in_the_recordings_of_a_real_openim_no_number_is_missing(name: str) -> None:
    events = events_of(name)
    now = max(event.seq for event in events) + LOST_MS
    for gateway in view(heard(events), now):
        assert (gateway.lost, gateway.note, gateway.state) == (0, "", "live"), gateway


def test_exactly_the_numbers_that_were_dropped_are_found_missing() -> None:
    rng = random.Random(3)
    numbers: dict[int, set[int]] = defaultdict(set)
    events = events_of("churn-600")
    for event in events:
        pid, number = batch_of(event.operation_id) or (0, 0)
        numbers[pid].add(number)
    dropped = {pid: set(rng.sample(sorted(known)[1:-1], 25)) for pid, known in numbers.items()}
    left = [event for event in events if (name := batch_of(event.operation_id)) and name[1] not in dropped[name[0]]]
    now = max(event.seq for event in events) + LOST_MS + 1
    assert {each.pid: each.lost for each in view(heard(left), now)} == dict.fromkeys(numbers, 25)


def test_a_batch_is_heard_with_all_that_a_job_has_of_it() -> None:
    on = Event("a", "callbackAfterUserOnlineCommand", 5, "", 1, "", "p_1_2", 900, "x", PEER)
    off = on._replace(user_id="b", command="callbackAfterUserOfflineCommand", seq=4, received_at=901)
    others = [on._replace(operation_id="op"), on._replace(peer="")]
    assert heard_in([on, off, *others]) == {(PEER, 1): {2: Heard(4, 900, {"online", "offline"})}}
