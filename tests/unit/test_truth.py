"""What follows from what we hold of users and what OpenIM says about them: each rule, and its reason."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from shared.events import SEQ_MAX
from shared.gateways.batches import Heard, Name
from shared.gateways.process import Process
from shared.openim.answers import Connection, Platforms
from shared.truth.ours import NEVER, Batch, Mark, Ours, Scope, read
from shared.truth.reach import Reach
from shared.truth.verdict import MOST_GONE, Correction, Theirs, Verdict, judge, too_many

NOW = 1_764_150_000_000
#: Gateway processes: where their callbacks come from, and their pids.
A, B = ("10.0.0.7", 7), ("10.0.0.8", 8)
HOUR_AGO = NOW - 3_600_000


def process(last_seconds: float = 5, every_seconds: float = 10, first: int = 1) -> Process:
    """A process whose last callback came that long ago, after an hour of callbacks at that interval."""
    found = Process()
    count = int(3600 / every_seconds)
    for number in range(count):
        at = NOW - int(1000 * (last_seconds + (count - 1 - number) * every_seconds))
        found.hear(first + number, Heard(at, at, {"online", "offline"}), at)
    return found


LIVE: dict[Name, Process] = {A: process(), B: process()}


def user(name: str, *platforms: int, at: Name | None = A, seq: int = HOUR_AGO, heard: int = HOUR_AGO) -> Ours:
    """A user who is online on these platforms, at that gateway."""
    batches = {platform: Batch(at[1], 100, NOW - 2_000_000) for platform in platforms} if at else {}
    return Ours(name, heard, {Scope(platform): Mark(seq, NEVER, False) for platform in platforms}, batches)


ALICE = user("alice", 1)
#: Two users who prove that a gateway was reached.
WALTER, WANDA = user("walter", 1), user("wanda", 1, at=B)
BOTH_ANSWER: Platforms = {"walter": {1: 1}, "wanda": {1: 1}}


def reach(processes: Mapping[Name, Process], online: Platforms, *asked: Ours, now: int = NOW) -> Reach:
    found = Reach(processes, now)
    found.see([*(asked or (ALICE, WALTER, WANDA))], online)
    return found


def verdict(
    ours: Ours = ALICE,
    online: Platforms = BOTH_ANSWER,
    processes: Mapping[Name, Process] = LIVE,
    recorded: list[int] | None = None,
    **more: Any,
) -> Verdict | None:
    theirs = Theirs(online.get(ours.user_id, {}), recorded=recorded)
    return judge(ours, theirs, reach(processes, online, ours, WALTER, WANDA), NOW, **more)


def off(scope: Scope, seq: int) -> Correction:
    return Correction(scope, False, seq)


# Both agree, or differ.


@pytest.mark.parametrize("ours", [ALICE, user("alice", 1, 5), Ours("alice"), user("alice", 0, at=None)])
def test_nobody_is_touched_who_is_online_as_we_say(ours: Ours) -> None:
    online = {**BOTH_ANSWER, "alice": dict.fromkeys(ours.platforms() or (), 1)}
    assert verdict(ours, online) is None


def test_a_ghost_is_closed_when_every_gateway_answered() -> None:
    found = verdict()
    assert found == Verdict("alice", "ghost", (1,), (), (off(Scope(1), HOUR_AGO + 1),), (), "witnessed")
    assert found.goes_offline


def test_a_missing_user_is_opened_at_once_whoever_answered() -> None:
    ours = Ours("alice", HOUR_AGO, {Scope(1): Mark(5, 9, False)})
    found = verdict(ours, {"alice": {1: 1}}, processes={})
    assert found == Verdict("alice", "missing", (), (1,), (Correction(Scope(1), True, 9),), (), "witnessed")
    assert not found.goes_offline


def test_one_whom_we_never_heard_of_is_opened_with_the_time_of_the_question_less_a_minute() -> None:
    found = verdict(Ours("alice"), {"alice": {5: 2}})
    assert found
    assert found.corrections == (Correction(Scope(5), True, NOW - 60_000),)


def test_other_platforms_are_closed_and_opened() -> None:
    ours = user("alice", 1, 2)
    found = verdict(ours, {**BOTH_ANSWER, "alice": {2: 1, 5: 1}})
    assert found
    assert (found.kind, found.ours, found.openim, found.why) == ("platforms", (1, 2), (2, 5), "witnessed")
    assert found.corrections == (off(Scope(1), HOUR_AGO + 1), Correction(Scope(5), True, NOW - 60_000))
    assert not found.goes_offline


@pytest.mark.parametrize(
    ("marks", "seq"),
    [
        ({Scope(1): Mark(5, 9, False)}, 9),
        ({Scope(1): Mark(5, NEVER, False), Scope(): Mark(NEVER, 12, False)}, 12),  # the user as a whole went offline
        ({Scope(1): Mark(5, 9, False), Scope(): Mark(NEVER, 7, False)}, 9),
        ({Scope(1): Mark(5, NEVER, True)}, 6),  # a lease that ran out: a newer online event ends that
        ({Scope(1): Mark(5, 9, True)}, 9),
        ({Scope(5): Mark(5, 9, False)}, NOW - 60_000),
    ],
)
def test_what_is_opened_has_the_seq_that_it_corrects(marks: dict[Scope, Mark], seq: int) -> None:
    found = verdict(Ours("alice", HOUR_AGO, marks), {"alice": {1: 1}})
    assert found
    assert found.corrections == (Correction(Scope(1), True, seq),)


def test_where_a_session_names_no_platform_only_online_and_offline_are_compared() -> None:
    ours = Ours("alice", HOUR_AGO, {Scope(): Mark(5, NEVER, False)})
    assert verdict(ours, {**BOTH_ANSWER, "alice": {5: 1}}) is None
    found = verdict(ours)
    assert found
    assert (found.ours, found.corrections) == ((), (off(Scope(), 6),))


def test_a_seq_that_nothing_can_exceed_is_left() -> None:
    found = verdict(user("alice", 1, seq=SEQ_MAX))
    assert found
    assert (found.corrections, found.doubtful) == ((), (Scope(1),))


@pytest.mark.parametrize(("ago", "is_fresh"), [(4_999, True), (5_000, False), (-4_999, True), (-5_000, False)])
def test_who_was_heard_of_just_now_is_left_for_the_next_turn(ago: int, is_fresh: bool) -> None:
    found = verdict(user("alice", 1, heard=NOW - ago))
    assert found
    assert (found.is_fresh, found.corrections == ()) == (is_fresh, is_fresh)


# Who answered.


def test_a_gateway_of_which_nobody_is_in_the_answer_leaves_its_users_unknown() -> None:
    found = verdict(online={"wanda": {1: 1}}, recorded=[1])
    assert found
    assert (found.kind, found.corrections, found.doubtful) == ("ghost", (), (Scope(1),))
    assert found.why == "nobody known to be at the gateway 10.0.0.7 (process 7) is in OpenIM's answer"
    assert not found.needs_second
    assert not found.goes_offline


def test_users_of_a_gateway_that_answered_are_closed_whatever_another_does() -> None:
    found = verdict(online={"walter": {1: 1}})
    assert found
    assert (found.why, found.goes_offline) == ("witnessed", True)


def test_one_witness_of_a_process_is_enough_though_others_are_absent() -> None:
    absent = [user(f"absent{number}", 1) for number in range(3)]
    online: Platforms = {"walter": {1: 1}}
    found = judge(ALICE, Theirs({}), reach(LIVE, online, *absent, WALTER), NOW)
    assert found
    assert found.why == "witnessed"


def test_a_witness_who_is_online_on_another_platform_only_proves_nothing() -> None:
    found = verdict(online={"walter": {5: 1}, "wanda": {1: 1}})
    assert found
    assert found.doubtful == (Scope(1),)


def test_somebody_of_whom_no_gateway_is_known_is_closed_only_when_all_answered() -> None:
    ours = user("alice", 1, at=None)
    found = verdict(ours)
    assert found
    assert found.why == "witnessed"
    for online in ({"walter": {1: 1}}, {}):
        found = verdict(ours, online)
        assert found
        assert (found.corrections, found.why) == ((), "OpenIM has not shown that it reached all its gateways")


def test_where_two_gateways_have_one_pid_the_number_says_which_it_is() -> None:
    beside = ("10.0.0.9", A[1])
    processes = {A: LIVE[A], beside: process(first=5000)}
    found = verdict(online={"walter": {1: 1}}, processes=processes)
    assert found
    assert found.why == "witnessed"
    processes[beside] = process()  # the same numbers: she may be at either
    found = verdict(online={"walter": {1: 1}}, processes=processes)
    assert found
    assert (found.corrections, found.doubtful) == ((), (Scope(1),))


def test_two_processes_with_one_address_and_pid_prove_nothing_of_each_other() -> None:
    two = process()
    other = process(first=90_000)
    two.runs += other.runs
    assert two.is_two
    found = verdict(online={"walter": {1: 1}}, processes={A: two})
    assert found
    assert found.doubtful == (Scope(1),)


# A gateway none of whose users is in the answer, although they are known to be gone.


def test_openims_record_agrees() -> None:
    found = verdict(online={}, recorded=[5])
    assert found
    assert (found.why, found.goes_offline) == ("record", True)


def test_openims_record_has_one_of_two_platforms() -> None:
    found = verdict(user("alice", 1, 5), {}, recorded=[5])
    assert found
    assert (found.corrections, found.doubtful) == ((off(Scope(1), HOUR_AGO + 1),), (Scope(5),))
    assert found.why == "nobody known to be at the gateway 10.0.0.7 (process 7) is in OpenIM's answer"
    assert not found.goes_offline


@pytest.mark.parametrize(
    ("silent_seconds", "every_seconds", "is_gone"),
    [
        (59, 0.5, False),  # 60 s at least
        (61, 0.5, True),
        (61, 10, False),  # 20 times its usual interval
        (190, 10, False),
        (240, 10, True),
        (20 * 60, 600, False),
        (21 * 60 + 1, 600, True),  # whatever its usual interval
    ],
)
def test_it_is_silent_for_too_long(silent_seconds: int, every_seconds: float, is_gone: bool) -> None:
    processes = {A: process(silent_seconds, every_seconds), B: LIVE[B]}
    # The user was in one of its batches, whichever that was.
    run = processes[A].runs[-1]
    ours = Ours("alice", HOUR_AGO, ALICE.marks, {1: Batch(A[1], run.high, run.last_seq)})
    found = verdict(ours, {"wanda": {1: 1}}, processes, recorded=[1])
    assert found
    assert (found.why == "witnessed") == is_gone
    assert (found.doubtful == ()) == is_gone


def test_its_address_is_heard_with_another_pid() -> None:
    processes = {A: process(last_seconds=30), (A[0], 9): process(last_seconds=1, every_seconds=0.02), B: LIVE[B]}
    processes[A[0], 9].runs[0].first_at_ms = NOW - 20_000
    found = verdict(online={"wanda": {1: 1}}, processes=processes, recorded=[1])
    assert found
    assert found.why == "witnessed"


def test_its_numbers_are_back_at_the_beginning() -> None:
    again = process(last_seconds=60, first=500)
    for number in range(1, 6):
        at = NOW - 10_000 + number * 1000
        again.hear(number, Heard(at, at, {"online", "offline"}), at)
    assert len(again.true_runs) == 2
    before = Ours("alice", HOUR_AGO, ALICE.marks, {1: Batch(A[1], 600, again.true_runs[0].last_seq)})
    found = verdict(before, {"wanda": {1: 1}}, {A: again, B: LIVE[B]}, recorded=[1])
    assert found
    assert found.why == "witnessed"
    after = Ours("alice", HOUR_AGO, ALICE.marks, {1: Batch(A[1], 3, NOW - 7_000)})
    found = verdict(after, {"wanda": {1: 1}}, {A: again, B: LIVE[B]}, recorded=[1])
    assert found
    assert found.doubtful == (Scope(1),)


# If operationIDs name no process, there are no witnesses.


def test_without_witnesses_one_answer_is_not_enough() -> None:
    found = verdict(processes={}, recorded=[1])
    assert found
    assert (found.corrections, found.needs_second, found.why) == ((), True, "OpenIM has said so once")
    again = verdict(processes={}, recorded=[1], first=found)
    assert again
    assert (again.why, again.goes_offline) == ("twice", True)


def test_without_witnesses_the_record_is_enough() -> None:
    found = verdict(processes={}, recorded=[])
    assert found
    assert found.why == "record"


def test_what_was_not_absent_the_first_time_is_not_closed_the_second_time() -> None:
    first = verdict(user("alice", 1), {}, processes={})
    ours = user("alice", 1, 5)
    second = verdict(ours, {}, processes={}, first=first)
    assert second
    assert (second.corrections, second.doubtful) == ((off(Scope(1), HOUR_AGO + 1),), (Scope(5),))
    assert second.needs_second


@pytest.mark.parametrize(
    ("leaving", "online", "expected"),
    [
        (MOST_GONE, MOST_GONE, False),
        (MOST_GONE + 1, 51, True),
        (500, 1000, True),  # half of everybody
        (201, 1000, True),
        (200, 1000, False),  # a fifth
    ],
)
def test_half_of_everybody_does_not_leave_at_once(leaving: int, online: int, expected: bool) -> None:
    assert too_many(leaving, online) == expected


# Up to 3.7 sessions are connections.

C1, C2 = Scope(1, "c1"), Scope(1, "c2")


def old(
    marks: Mapping[Scope, Mark], platforms: dict[int, int], connections: Sequence[tuple[int, str]], **more: Any
) -> Verdict | None:
    ours = Ours("alice", HOUR_AGO, marks, floor=more.pop("floor", NEVER))
    theirs = Theirs(platforms, [Connection(*each) for each in connections], is_old=True)
    return judge(ours, theirs, Reach({}, NOW), NOW, **more)


def test_connections_that_both_know_are_left() -> None:
    assert old({C1: Mark(5, NEVER, False)}, {1: 1}, [(1, "c1")]) is None


def test_a_connection_that_openim_does_not_know_is_closed_and_another_opened() -> None:
    marks = {C1: Mark(5, NEVER, False)}
    first = old(marks, {1: 1}, [(1, "c2")])
    assert first
    assert (first.kind, first.corrections, first.needs_second) == (
        "platforms",
        (Correction(C2, True, NOW - 60_000),),
        True,
    )
    second = old(marks, {1: 1}, [(1, "c2")], first=first)
    assert second
    assert second.corrections == (off(C1, 6), Correction(C2, True, NOW - 60_000))


def test_a_connection_may_be_at_another_gateway_than_the_first_that_knows_her() -> None:
    assert old({C1: Mark(5, NEVER, False), C2: Mark(6, NEVER, False)}, {1: 2}, [(1, "c2")]) is None
    gone = old({C1: Mark(5, NEVER, False), C2: Mark(6, NEVER, False)}, {1: 1}, [(1, "c2")])
    assert gone
    assert gone.doubtful == (C1,)


def test_a_connection_without_a_platform_is_compared_with_all() -> None:
    unknown = Scope(0, "c1")
    assert old({unknown: Mark(5, NEVER, False)}, {1: 2}, [(1, "c2")]) is not None  # c2 is opened
    found = old({unknown: Mark(5, NEVER, False), C2: Mark(5, NEVER, False)}, {1: 1}, [(1, "c2")])
    assert found
    assert found.doubtful == (unknown,)


def test_nothing_is_opened_that_no_callback_would_close() -> None:
    found = old({}, {1: 1, 5: 1}, [(1, "c1")])
    assert found
    assert found.corrections == (Correction(C1, True, NOW - 60_000),)
    found = old({C1: Mark(5, NEVER, False)}, {1: 1, 5: 1}, [(1, "c1")])
    assert found
    assert (found.kind, found.corrections) == ("platforms", ())
    assert found.why == "only the gateway knows which connection it is"


@pytest.mark.parametrize(
    ("marks", "floor", "seq"),
    [
        ({C1: Mark(5, 9, False)}, NEVER, 9),
        ({Scope(0, "c1"): Mark(5, 9, False)}, NEVER, 9),  # the connection is the same
        ({C1: Mark(5, 9, False), Scope(1): Mark(NEVER, 12, False)}, NEVER, 12),
        ({}, 30, 31),  # an unknown one at the floor would be stale
    ],
)
def test_what_a_connection_is_opened_with(marks: dict[Scope, Mark], floor: int, seq: int) -> None:
    found = old(marks, {1: 1}, [(1, "c1")], floor=floor)
    assert found
    assert found.corrections == (Correction(C1, True, seq),)


# What is in a hash.


def test_a_hash_is_read_with_its_private_fields() -> None:
    fields = {
        b"status": b"online",
        b"updated_at": b"77",
        b"p:1": b"20 10 1",
        b"p:2": b"30 40 2 88",
        b"p:3": b"50 - 3 x",
        b"c:c1": b"60 - 5 99",
        b"u": b"- 15 0",
        b"floor": b"3",
        b"b:0": b"20 n1.ab,f2.cd@21 p_7_12",
        b"b:1": b"18 n1.ab,n2.x@19 p_8_3",
        b"b:2": b"30 n2.x ",
        b"s:1": b"9 9",
    }
    ours = read("alice", fields)
    assert (ours.heard_at_ms, ours.floor) == (77, 3)
    assert ours.marks == {
        Scope(1): Mark(20, 10, False),
        Scope(2): Mark(30, 40, False),
        Scope(3): Mark(50, NEVER, True),
        Scope(5, "c1"): Mark(60, NEVER, False),
        Scope(): Mark(NEVER, 15, False),
    }
    assert set(ours.sessions()) == {Scope(1), Scope(5, "c1")}
    assert ours.batches == {1: Batch(7, 12, 20)}  # platform 2's newest online event was in no gateway's batch
    assert read("nobody", {}) == Ours("nobody")


@pytest.mark.parametrize("fields", [{b"p:1": b"what"}, {b"updated_at": b"soon"}, {b"b:0": b"20 z1.a p_1_2"}])
def test_a_hash_that_is_none_of_ours_is_said_to_be_none(fields: dict[bytes, bytes]) -> None:
    with pytest.raises(ValueError, match=r"."):
        read("alice", fields)
