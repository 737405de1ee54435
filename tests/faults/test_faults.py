"""A short seeded round of every scenario; `python tests/faults/run.py` runs long ones."""

import pytest
from rig import rig
from scenarios import SCENARIOS, Scenario

SEED = 20261123


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_nothing_accepted_is_lost(scenario: Scenario) -> None:
    with rig(scenario.__name__, SEED) as made:
        scenario(made)
        assert made.report.lost == 0
