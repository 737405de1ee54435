"""What requires a comparison with OpenIM at once."""

from dataclasses import replace

import pytest

from shared.gateways.view import Gateway, Gateways, State
from shared.reports import Report
from worker.reconcile.triggers import AWAY_MS, SEEN, Seen, Urgent, look

NOW = 1_764_150_000_000
HERE = [Report("r1", NOW - 60_000, 0, 0, 0), Report("r2", NOW - 900, 0, 0, 0)]
AWAY = [Report("r1", NOW - AWAY_MS - 1, 0, 0, 0)]


def gateway(state: State, pid: int = 7, first_at_ms: int = 5) -> Gateway:
    return Gateway("10.0.0.7", pid, state, first_at_ms, 6, 1, 1, 0)


ALL_WELL = Seen(NOW - 5000, 3, frozenset({("10.0.0.7", 1, 5)}))
KNOWN = Gateways((gateway("live"), gateway("restarted", 1)), 100, 3)


@pytest.mark.parametrize(
    ("before", "gateways", "receivers", "took_over", "expected"),
    [
        (ALL_WELL, KNOWN, HERE, False, Urgent()),
        (None, replace(KNOWN, lost=9), AWAY, True, Urgent()),  # the first round is about everybody
        (ALL_WELL, replace(KNOWN, lost=4), HERE, False, Urgent(online=True, everybody=True)),
        (ALL_WELL, replace(KNOWN, late_at_ms=NOW), HERE, False, Urgent(online=True, everybody=True)),
        (replace(ALL_WELL, late_at_ms=NOW), replace(KNOWN, late_at_ms=NOW), HERE, False, Urgent()),
        (ALL_WELL, Gateways((gateway("silent"),), 100, 3), HERE, False, Urgent(gone=frozenset({("10.0.0.7", 7)}))),
        (ALL_WELL, Gateways((gateway("restarted"),), 100, 3), HERE, False, Urgent(gone=frozenset({("10.0.0.7", 7)}))),
        # Another run of the process that was gone before.
        (
            ALL_WELL,
            Gateways((gateway("restarted", 1, 8),), 100, 3),
            HERE,
            False,
            Urgent(gone=frozenset({("10.0.0.7", 1)})),
        ),
        (ALL_WELL, KNOWN, AWAY, False, Urgent()),  # nothing comes yet
        (replace(ALL_WELL, away=True), KNOWN, AWAY, False, Urgent()),
        (replace(ALL_WELL, away=True), KNOWN, HERE, False, Urgent(online=True, everybody=True)),
        (replace(ALL_WELL, at_ms=NOW - 60_000), KNOWN, HERE, False, Urgent()),  # this worker was slow
        (replace(ALL_WELL, at_ms=NOW - 60_000), KNOWN, HERE, True, Urgent(online=True, everybody=True)),
        (ALL_WELL, KNOWN, HERE, True, Urgent()),  # another worker looked a moment ago
        (replace(ALL_WELL, at_ms=NOW - 60_000), KNOWN, AWAY, True, Urgent()),
    ],
)
def test_what_was_lost_is_looked_for(
    before: Seen | None, gateways: Gateways, receivers: list[Report], took_over: bool, expected: Urgent
) -> None:
    seen, urgent = look(before, gateways, receivers, NOW, took_over=took_over)
    assert urgent == expected
    assert bool(urgent) == (expected != Urgent())
    assert SEEN.validate_json(SEEN.dump_json(seen)) == seen
    again, nothing = look(seen, gateways, receivers, NOW + 1)
    assert not nothing
    assert again.away == (receivers == AWAY)


def test_an_outage_is_remembered_until_a_receiver_is_back() -> None:
    seen, _ = look(ALL_WELL, KNOWN, AWAY, NOW)
    seen, urgent = look(seen, KNOWN, AWAY, NOW + 60_000)
    assert not urgent
    _, urgent = look(seen, KNOWN, [Report("r1", NOW + 65_000, 0, 0, 0)], NOW + 65_000)
    assert urgent.online
    assert urgent.everybody
