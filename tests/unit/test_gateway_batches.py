"""What OpenIM did not tell: gateway processes, and the numbers of their batches."""

import gzip
import json
import random
from collections import defaultdict
from typing import Any

import pytest
from support import ROOT

from shared.events import Event
from shared.gateways.batches import MOST_WITNESSES, Heard, Name, batch_of, heard_in
from shared.gateways.process import SILENT_MS, Process
from shared.gateways.records import decode, decode_all, encode
from shared.gateways.run import LOST_MS, MOST_STRETCHES
from shared.gateways.view import Gateway, view

PEER, NOW = "10.0.0.7", 1_764_150_000_000
BOTH = {"online", "offline"}


def process(*heard: tuple[int, int], kinds: Any = BOTH) -> Process:
    """A gateway process from which these batches came: number, and seconds before NOW."""
    found = Process()
    for number, before in heard:
        hear(found, number, NOW - before * 1000, kinds)
    return found


def hear(found: Process, number: int, at: int, kinds: Any = BOTH) -> None:
    """Takes a batch that was sent, received and given to a worker at one time."""
    found.hear(number, Heard(at, at, set(kinds)), at)


def seen(now: int = NOW, **processes: Process) -> list[Gateway]:
    return list(view({(PEER, int(name[1:])): each for name, each in processes.items()}, now).processes)


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
        ([(1, 60), (3, 50), (7, 40), (9, 5)], 4),  # the last gap cannot be judged yet
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
    (gateway,) = seen(p1=decode(encode(again)))
    assert gateway.lost == in_order[0].lost == 42
    assert gateway.heard == in_order[0].heard == len(numbers)


def test_a_number_thought_lost_that_comes_late_is_not_lost() -> None:
    late = process((1, 600), (3, 598), (4, 400))
    assert seen(p1=late)[0].lost == 1
    late.hear(2, Heard(NOW - 599_000, NOW - 599_000, {"online"}), NOW)
    (gateway,) = seen(p1=late)
    assert (gateway.lost, gateway.missing) == (0, ())


@pytest.mark.parametrize(("kinds", "word"), [({"online"}, "online"), ({"offline"}, "offline")])
def test_where_one_kind_alone_is_enabled_gaps_are_usual(kinds: set[str], word: str) -> None:
    (gateway,) = seen(p1=process((1, 60), (9, 50), kinds=kinds))
    assert gateway.lost is None
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


def test_a_number_that_waits_with_what_came_later_is_not_lost() -> None:
    """Events may wait for hours in journals and in the queue, and parts of one sequence in several of them."""
    late = Process()
    for number, worked_at in ((1, NOW), (3, NOW)):
        late.hear(number, Heard(NOW - 3_600_000, NOW - 3_600_000, set(BOTH)), worked_at)
    assert late.lost(NOW + LOST_MS) == 0
    assert late.lost(NOW + LOST_MS + 1) == 1


@pytest.mark.parametrize("apart", [1000, 100, 20])
def test_numbers_that_go_back_quickly_are_a_restart_as_well(apart: int) -> None:
    """A container restarts within seconds: with the same pid, and before fifteen seconds have passed."""
    found = process(*((n, 300 - n) for n in range(1, 200)))
    for n in range(1, 40):
        hear(found, n, NOW - 100_000 + apart + 1000 * n)
    shown = seen(NOW - 60_000, p1=found)
    assert [each.state for each in shown] == ["live", "restarted"]
    assert (shown[0].heard, shown[0].lost, shown[1].heard, shown[1].lost) == (39, 0, 199, 0)


def test_what_comes_late_of_a_run_that_ended_belongs_to_that_run() -> None:
    before = [(n, 3000 - n) for n in range(900, 1000) if n != 950]
    after = [(n, 1500 - n) for n in range(1, 20)]
    found = process(*before, *after)
    assert [each.lost for each in seen(NOW - 1_470_000, p1=found)] == [0, 1]
    found.hear(950, Heard(NOW - 2_050_000, NOW - 2_050_000, set(BOTH)), NOW - 1_470_000)  # out of a journal, say
    assert [each.lost for each in seen(NOW - 1_470_000, p1=found)] == [0, 0]
    other_way_round = process(*after, *before)
    hear(other_way_round, 950, NOW - 2_050_000)
    shown = [(each.state, each.heard, each.lost) for each in seen(NOW - 1_470_000, p1=other_way_round)]
    assert shown == [("live", 19, 0), ("restarted", 100, 0)]


def test_one_callback_that_comes_very_late_is_neither_a_restart_nor_another_process() -> None:
    found = process(*((n, 700 - n) for n in range(1, 600)))
    hear(found, 300, NOW - 110_000)
    hear(found, 599, NOW - 100_500)
    (gateway,) = seen(NOW - 100_000, p1=found)
    assert (gateway.state, gateway.lost, gateway.note) == ("live", 0, "")


def test_times_are_ours_and_not_the_gateways() -> None:
    found = Process()
    behind = 8 * 3_600_000
    for n, at in [(n, NOW - 3_000_000 + n) for n in range(1, 50)] + [(n, NOW - n) for n in range(10, 0, -1)]:
        found.hear(n, Heard(at - behind, at, set(BOTH)), at)
    live, ended = seen(p1=found)
    assert (live.first_at_ms, ended.first_at_ms) == (NOW - 10, NOW - 3_000_000 + 1)


def test_a_new_gateway_beside_others_at_one_address_takes_no_ones_place() -> None:
    """They are behind one NAT: one that is silent for a moment while another starts has not ended."""
    quiet = process(*((n, 700 - 10 * n) for n in range(1, 68)))  # the last of them 30 s ago
    other = process(*((n, 700 - 10 * n) for n in range(1, 70)))
    new = process((1, 5), (2, 1))
    assert {each.pid: each.state for each in seen(p1=quiet, p2=other, p3=new)} == {1: "live", 2: "live", 3: "live"}
    shown = seen(NOW + 300_000, p1=quiet, p2=other, p3=process((1, 5), (2, -299)))
    assert {each.pid: each.state for each in shown} == {1: "restarted", 2: "restarted", 3: "live"}


def test_of_two_processes_with_one_address_and_pid_nothing_is_concluded() -> None:
    both = [(n, 2000 - n) for n in range(900, 1000)] + [(n - 800, 1999 - n) for n in range(850, 1000) if n % 3]
    (gateway,) = seen(p1=process(*sorted(both, key=lambda each: -each[1])))
    assert (gateway.lost, gateway.missing) == (None, ())
    assert "two processes" in gateway.note


def test_two_with_one_pid_are_recognized_within_a_second() -> None:
    found = Process()
    for n in range(1, 20):
        hear(found, n, NOW + 20 * n)
        hear(found, n + 1000, NOW + 20 * n + 10)
    (gateway,) = seen(NOW + 60_000, p1=found)
    assert (gateway.state, gateway.lost) == ("live", None)
    assert "two processes" in gateway.note


def test_two_with_one_pid_that_start_together_are_recognized_as_their_numbers_drift_apart() -> None:
    found = Process()
    batches = [(NOW + 1000 * n, n) for n in range(1, 600)] + [(NOW + 1130 * n + 7, n) for n in range(1, 530)]
    for at, n in sorted(batches):
        hear(found, n, at)
    (gateway,) = seen(NOW + 600_000, p1=found)
    assert "two processes" in gateway.note


def test_a_clock_that_steps_back_as_its_host_starts_again_is_a_restart() -> None:
    found = Process()
    for n in range(1, 100):
        hear(found, n, NOW + 1000 * n)
    for n in range(1, 100):  # 120 s later, by a clock that is set back by 60 s
        found.hear(n, Heard(NOW + 160_000 + 1000 * n, NOW + 220_000 + 1000 * n, set(BOTH)), NOW + 220_000 + 1000 * n)
    assert [each.state for each in seen(NOW + 320_000, p1=found)] == ["live", "restarted"]


def test_the_order_in_which_jobs_are_done_changes_nothing() -> None:
    """Two runs, with a gap each, in jobs that are done out of order and more than once."""
    batches = [(n, NOW + 500 * n) for n in range(1, 400) if n != 77] + [
        (n, NOW + 400_000 + 500 * n) for n in range(1, 200) if n % 50
    ]
    expected = None
    for seed in range(20):
        rng = random.Random(seed)
        jobs = [batches[start : start + 20] for start in range(0, len(batches), 20)]
        jobs = sorted(jobs + rng.sample(jobs, 10), key=lambda job: job[0][1] + rng.random() * 60_000 * (seed > 0))
        found = Process()
        for job in jobs:
            for n, at in job:
                found.hear(n, Heard(at, at, set(BOTH)), at)
        shown = [(each.state, each.heard, each.missing) for each in seen(NOW + 520_000, p1=found)]
        expected = expected or shown
        assert shown == expected
    assert expected == [("live", 196, ((50, 50), (100, 100), (150, 150))), ("restarted", 398, ((77, 77),))]


def test_what_is_kept_is_bounded() -> None:
    rng = random.Random(2)
    hostile = process((1, 60))
    for _ in range(3000):
        at = NOW + rng.randrange(10**9)
        hostile.hear(rng.randrange(10**14), Heard(rng.randrange(2**63), at, set(BOTH)), at)
    odd = process(*((2 * n, 1000 - n) for n in range(1, 900)))
    assert len(odd.runs[0].stretches) <= MOST_STRETCHES
    assert seen(p1=odd)[0].lost == 898
    for each in (hostile, odd):
        assert len(encode(each)) < 20_000


def test_what_cannot_be_read_is_passed_over() -> None:
    good = encode(process((1, 60)))
    wrong = good.replace(b"[[1,1,", b"[[[],{},")
    assert wrong != good
    fields = {
        b"10.0.0.7 5": wrong,
        b"10.0.0.7 6": b'{"runs":[]}',
        b"forgotten_lost": b"3",
        b"10.0.0.7 1": good,
        b"nonsense": good,
        b"10.0.0.7 2": b"{}",
        b"\xff 3": b"1",
        b"10.0.0.7 4": b"[]",
    }
    assert set(decode_all(fields)) == {(PEER, 1)}


def events_of(name: str) -> list[Event]:
    with gzip.open(ROOT / "tests" / "recordings" / f"{name}.json.gz") as file:
        calls = json.load(file)["calls"]
    return [
        Event(user, f"callbackAfterUser{kind.title()}Command", seq, "", platform, "", operation, at, f"{n}", PEER)
        for n, (seconds, kind, user, platform, seq, operation) in enumerate(calls)
        for at in [calls[0][4] + round((seconds - calls[0][0]) * 1000)]
    ]


def heard(events: list[Event]) -> dict[Name, Process]:
    """Takes events in jobs of a few, as workers see them."""
    processes: dict[Name, Process] = {}
    for start in range(0, len(events), 100):
        for name, batches in heard_in(events[start : start + 100]).items():
            for number, batch in batches.items():
                processes.setdefault(name, Process()).hear(number, batch, batch.at_ms)
    return processes


@pytest.mark.parametrize("name", ["churn-600", "churn-400", "churn-main"])
def test_in_the_recordings_of_a_real_openim_no_number_is_missing_and_nothing_is_late(name: str) -> None:
    events = events_of(name)
    now = max(event.seq for event in events) + LOST_MS
    found = view(heard(events), now)
    assert found.late_at_ms == 0
    for gateway in found.processes:
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
    found = view(heard(left), now)
    missing = {
        each.pid: {n for first, last in each.missing for n in range(first, last + 1)} for each in found.processes
    }
    assert missing == dropped
    assert {each.lost for each in found.processes} == {25}
    assert found.lost == 50


@pytest.mark.parametrize(
    ("ways", "is_late"),
    [
        ([(0, 0), (0, 407)], False),  # the most in the recordings
        ([(0, 0), (0, 3100)], True),
        ([(0, 0), (3100, 3100)], True),
        ([(-5000, -5000), (-1900, -1900)], True),  # the gateway's clock is ahead
        ([(8000, 8000), (8000, 8100)], False),  # or behind
        ([(-(2**63), -(2**63)), (0, 3100)], False),  # something else than a clock
    ],
)
def test_a_callback_is_late_if_it_had_to_wait_at_its_gateway(ways: list[tuple[int, int]], is_late: bool) -> None:
    found = Process()
    for number, (quickest, slowest) in enumerate(ways):
        at = NOW + number
        found.hear(number, Heard(at, at, set(BOTH), [], quickest, slowest), at)
        found = decode(encode(found))
    assert view({(PEER, 1): found}, NOW).late_at_ms == (NOW + 1 if is_late else 0)


def test_what_is_usual_by_now_is_not_late() -> None:
    found = Process()
    for minute in range(13):  # the gateway's clock was set back by 5 s in the second one
        at, way = NOW + 60_000 * minute, 5000 if minute else 0
        found.hear(minute, Heard(at, at, set(BOTH), [], way, way), at)
    assert found.late_at_ms == NOW + 60_000 * 10


class Sender:
    """A gateway of OpenIM 3.8.2 and later as its sources have it, millisecond by millisecond.

    Four goroutines each stamp the callbacks of a batch one by one, and wait 3 s for one of a hundred places before they
    drop one. Two others send what has a place; an answer takes answer_ms, and none comes while the receiver stalls.
    """

    def __init__(self, rng: random.Random, stall_ms: int, answer_ms: int) -> None:
        #: In the order in which they arrived: number, stamp, and when that was.
        self.arrived: list[tuple[int, int, int]] = []
        self.dropped = numbers = 0
        queue: list[tuple[int, int]] = []
        todo: list[list[int]] = [[] for _ in range(4)]
        waits: dict[int, tuple[int, int]] = {}
        for now in range(40_000):
            if now % 1000 == 0 and now < 20_000:
                for goroutine in range(4):
                    numbers += 1
                    todo[goroutine] += [numbers] * rng.randint(1, 20)
            if now % answer_ms == 0 and not 5500 <= now < 5500 + stall_ms:
                self.arrived += [(*each, now) for each in queue[:2]]
                del queue[:2]
            for goroutine in range(4):
                while todo[goroutine] or goroutine in waits:
                    number, stamp = waits.pop(goroutine, None) or (todo[goroutine].pop(0), now)
                    if len(queue) < 100:
                        queue.append((number, stamp))
                    elif now - stamp < 3000:
                        waits[goroutine] = number, stamp
                        break
                    else:
                        self.dropped += 1


@pytest.mark.parametrize(
    ("stall_ms", "answer_ms"), [(0, 1), (2500, 1), (5000, 1), (8000, 1), (12_000, 1), (0, 150), (0, 2500)]
)
@pytest.mark.parametrize("seed", range(3))
def test_if_a_gateway_dropped_callbacks_others_were_late(seed: int, stall_ms: int, answer_ms: int) -> None:
    rng = random.Random(seed)
    sender = Sender(rng, stall_ms, answer_ms)
    found, at = Process(), 0
    while at < len(sender.arrived):
        job = sender.arrived[at : at + rng.randint(1, 60)]
        at += len(job)
        events = [
            Event(f"{seq}", "callbackAfterUserOnlineCommand", NOW + seq, "", 1, "", f"p_1_{n}", NOW + now, "", PEER)
            for n, seq, now in job
        ]
        for number, batch in heard_in(events)[PEER, 1].items():
            found.hear(number, batch, NOW)
    assert (sender.dropped > 0) == (stall_ms > 5000 or answer_ms > 100)
    assert (found.late_at_ms > 0) == (sender.dropped > 0 or stall_ms == 5000)  # then some waited, and got a place


def test_a_batch_is_heard_with_all_that_a_job_has_of_it() -> None:
    on = Event("a", "callbackAfterUserOnlineCommand", 5, "", 1, "", "p_1_2", 900, "x", PEER)
    off = on._replace(user_id="b", command="callbackAfterUserOfflineCommand", seq=4, received_at=901)
    others = [on._replace(operation_id="op"), on._replace(peer="")]
    assert heard_in([on, off, *others]) == {(PEER, 1): {2: Heard(4, 900, {"online", "offline"}, [("a", 1)], 895, 897)}}
    by_server = heard_in([on], skew_ms=50)[PEER, 1][2]
    assert (by_server.at_ms, by_server.slowest_ms) == (850, 845), "by the clock of the queue's server"


def test_some_of_those_whom_a_process_called_online_last_are_kept_as_its_witnesses() -> None:
    process = Process()
    users = [f"user{number}" for number in range(40)]
    for number, user in enumerate([*users, "user39", "user30"]):
        on = Event(user, "callbackAfterUserOnlineCommand", number, "", 5, "", f"p_1_{number}", number, user, PEER)
        off = on._replace(user_id="gone", command="callbackAfterUserOfflineCommand", id="off")
        nowhere = on._replace(user_id="nowhere", platform_id=0, id="nowhere")
        process.hear(number, heard_in([off, on, nowhere])[PEER, 1][number], 0)
    assert process.witnesses == [(user, 5) for user in [*users[24:30], *users[31:], "user30"]]
    storm = [on._replace(user_id=user, id=user) for user in users]
    assert len(heard_in(storm)[PEER, 1][number].witnesses) == MOST_WITNESSES
    assert decode(encode(process)) == process
