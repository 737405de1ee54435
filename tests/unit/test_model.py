"""The model that presence is tested against: it agrees with recordings of a real OpenIM, and with its own promises."""

import random
import re
from collections.abc import Iterable

import model
import pytest
import recorded
from histories import again, deliveries, few_batches, many_batches, orders, up_to_four_late
from hypothesis import given
from hypothesis import strategies as st
from support import ROOT

from shared.events import Event

PAGE = (ROOT / "docs" / "openim-versions.md").read_text()


@pytest.mark.parametrize(
    ("name", "acts", "wrong"), [("churn-600", 6908, 57), ("churn-400", 9704, 43), ("churn-main", 5552, 12)]
)
def test_the_rule_agrees_with_the_record_of_a_real_openim(name: str, acts: int, wrong: int) -> None:
    recording = recorded.load(name)
    comparison = recorded.compare(recording, model.platforms)
    assert (recording.acts, comparison.ghosts, comparison.false_offlines) == (acts, wrong, 0)
    assert wrong * 100 < acts
    assert re.search(rf"^\| `{name}` .* {acts:,} .* {wrong} \(", PAGE, re.MULTILINE)


#: OpenIM's Redis lost its record, and OpenIM sent no callback about that.
UNRECORDED = {"record-lost"}


@pytest.mark.parametrize("name", sorted(set(recorded.SCENARIOS) - UNRECORDED))
def test_a_single_scenario_ends_as_openim_recorded_it(name: str) -> None:
    events: list[Event] = []
    for piece, record in recorded.load(name).pieces():
        events += (call.event(str(number)) for number, call in enumerate(piece, len(events)))
        ours = {user: model.platforms(event for event in events if event.user_id == user) for user in record}
        assert ours == record


def remembering(deliveries: Iterable[list[Event]]) -> model.Memory:
    memory = model.Memory(remembered=model.REMEMBERED)
    for events in deliveries:
        memory.add(events)
    return memory


def state(memory: model.Memory) -> tuple[set[model.Scope], list[int]]:
    return set(memory.openings()), memory.platforms()


@given(few_batches(), st.randoms(use_true_random=False))
def test_of_four_batches_every_order_and_every_grouping_ends_alike(
    events: list[Event], shuffler: random.Random
) -> None:
    expected = state(model.Memory(events))
    for order in orders(events + again(events, shuffler), 4, shuffler):
        assert state(remembering(deliveries(order, shuffler))) == expected


@given(many_batches(), st.randoms(use_true_random=False))
def test_up_to_four_batches_late_is_not_late(history: list[list[Event]], shuffler: random.Random) -> None:
    expected = state(model.Memory(event for batch in history for event in batch))
    for _ in range(4):
        order = up_to_four_late(history, shuffler)
        memory = remembering(deliveries(order, shuffler))
        assert state(memory) == expected
        for events in deliveries(again(order, shuffler), shuffler):  # of batches that were summed up, too
            memory.add(events)
            assert state(memory) == expected
