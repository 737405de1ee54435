"""When silence counts. A lease of 60 s; the clock stands at a million."""

from dataclasses import replace
from typing import Any

import pytest

from shared.reports import Report
from worker.sweep.watermark import LeaseWatermark, look

NOW, LEASE = 1_000_000, 60_000
#: Everything was well a second ago, and has been for two leases.
BEFORE = LeaseWatermark(swept_at=NOW - 1000, heard_at=NOW - 1500, since=NOW - 2 * LEASE, until=NOW - 2000, servers="a")


def report(
    at: int = NOW - 500, mark: int = NOW - 700, events: int = 0, healthy_at: int | None = None, skew: int = 0
) -> Report:
    return Report("r", at, mark, events, 100 * events, "", at if healthy_at is None else healthy_at, skew)


def see(before: LeaseWatermark = BEFORE, **seen: Any) -> LeaseWatermark:
    seen = {"servers": "a", "reports": [report()], "waiting": [], **seen}
    return look(before, NOW, LEASE, **seen)


def test_leases_run_out_up_to_where_all_is_applied() -> None:
    assert see() == LeaseWatermark(NOW, NOW - 500, BEFORE.since, NOW - 700, "", "a")


@pytest.mark.parametrize(
    ("seen", "until"),
    [
        ({"reports": [report(), report(mark=NOW - 9000, events=3)]}, NOW - 9000),
        ({"waiting": [NOW - 800, NOW - 30_000]}, NOW - 30_000),
        ({"waiting": [0]}, 0),
        ({"reports": [report(mark=NOW + 5000)]}, NOW),
        ({"reports": [report(skew=-9000)]}, NOW - 9700),
        ({"reports": [report(skew=9000)]}, NOW - 700),
    ],
    ids=[
        "waits in a journal",
        "waits on the queue",
        "of unknown age on the queue",
        "a clock that is ahead",
        "of a receiver whose clock is behind, and so its events' times",
        "of a receiver whose clock is ahead",
    ],
)
def test_what_is_not_applied_yet_holds_up_later_ends(seen: dict[str, Any], until: int) -> None:
    coverage = see(**seen)
    assert (coverage.until, coverage.since) == (until, BEFORE.since)


@pytest.mark.parametrize(
    ("before", "seen"),
    [
        (LeaseWatermark(), {}),
        (replace(BEFORE, swept_at=NOW - 16_000), {}),
        (BEFORE, {"servers": "b"}),
        (replace(BEFORE, heard_at=NOW - 16_000), {"reports": []}),
        (BEFORE, {"reports": [report(), report(at=NOW - 16_000)]}),
        (BEFORE, {"reports": [report(at=NOW - 16_000)]}),
        (BEFORE, {"reports": [report(), report(healthy_at=NOW - 16_000)]}),
        (replace(BEFORE, since=NOW - 1000), {"reports": [report(), report(at=NOW - 30_000)]}),
    ],
    ids=[
        "the first sweep",
        "no worker swept",
        "a server was replaced",
        "no receiver reported",
        "one of two receivers fell silent",
        "the only receiver fell silent",
        "one of two receivers refuses events",
        "one stays silent, and may have events in its journal",
    ],
)
def test_after_a_gap_a_whole_lease_must_pass(before: LeaseWatermark, seen: dict[str, Any]) -> None:
    coverage = see(before, **seen)
    assert coverage.since == NOW
    assert coverage.held


@pytest.mark.parametrize(
    ("before", "seen"),
    [
        (replace(BEFORE, swept_at=NOW - 14_000), {}),
        (BEFORE, {"reports": [report(healthy_at=NOW - 14_000)]}),
        (replace(BEFORE, since=NOW - 62_000), {"reports": [report(), report(at=NOW - 63_000)]}),
    ],
    ids=[
        "a short pause",
        "events were refused for a moment",
        "a receiver that has been gone for a lease",
    ],
)
def test_these_are_no_gaps(before: LeaseWatermark, seen: dict[str, Any]) -> None:
    coverage = see(before, **seen)
    assert coverage.since == before.since
    assert not coverage.held


def test_nothing_runs_out_while_nobody_knows_what_waits() -> None:
    assert see(waiting=None).held == "too many batches wait on the queue"
    assert see(waiting=None).until == BEFORE.until
    coverage = see(reports=[])
    assert (coverage.held, coverage.until, coverage.since) == ("no receiver reports", BEFORE.until, BEFORE.since)


@pytest.mark.parametrize(
    ("reports", "why"),
    [
        ([replace(report(), unreadable=1)], "cannot be read"),
        ([report(), replace(report(at=NOW - 3 * LEASE), unreadable=1)], "cannot be read"),
        ([report(), replace(report(at=NOW - 3 * LEASE), events=1)], "a receiver that is silent"),
    ],
    ids=["of a live receiver", "of a silent one", "which nobody has taken over"],
)
def test_nothing_runs_out_while_accepted_events_wait_in_a_journal(reports: list[Report], why: str) -> None:
    watermark = see(reports=reports)
    assert why in watermark.held
    assert watermark.until == BEFORE.until


def test_a_report_from_the_future_is_one_of_now() -> None:
    assert see(reports=[report(at=NOW + LEASE)]).heard_at == NOW


def test_nothing_runs_out_where_nobody_may_know_whether_a_server_was_replaced() -> None:
    assert "INFO is forbidden" in see(servers="").held


def test_a_lease_later_all_is_as_before() -> None:
    gap = see(servers="b")
    later = look(gap, NOW + LEASE // 5, LEASE, "b", [report(NOW + LEASE // 5, NOW + LEASE // 5)], [])
    assert later.held
    last = replace(later, swept_at=NOW + LEASE, heard_at=NOW + LEASE)
    assert not look(last, NOW + LEASE + 1, LEASE, "b", [report(NOW + LEASE, NOW + LEASE)], []).held
