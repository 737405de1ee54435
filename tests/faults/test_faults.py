"""A short seeded round of every scenario; `python tests/faults/run.py` runs long ones."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from rig import rig
from scenarios import SCENARIOS, TIMED, Scenario

SEED = 20261123
#: Most scenarios mostly wait, until the fault is noticed.
AT_ONCE = 3

UNTIMED = [scenario for scenario in SCENARIOS if scenario not in TIMED]


def run(scenario: Scenario) -> None:
    with rig(scenario.__name__, SEED) as made:
        scenario(made)
        assert made.report.lost == 0


@pytest.fixture(scope="module")
def under_way(request: pytest.FixtureRequest) -> Iterator[dict[Scenario, Future[None]]]:
    """The scenarios that were asked for, run several at a time."""
    asking = [item for item in request.session.items if "under_way" in getattr(item, "fixturenames", ())]
    wanted = [item.callspec.params["scenario"] for item in asking]  # type: ignore[attr-defined]  # pytest.Function's
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {scenario: pool.submit(run, scenario) for scenario in wanted}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("scenario", TIMED, ids=lambda scenario: scenario.__name__)
def test_nothing_accepted_is_lost_and_answers_are_fast(scenario: Scenario) -> None:
    run(scenario)


@pytest.mark.parametrize("scenario", UNTIMED, ids=lambda scenario: scenario.__name__)
def test_nothing_accepted_is_lost(scenario: Scenario, under_way: dict[Scenario, Future[None]]) -> None:
    under_way[scenario].result()
