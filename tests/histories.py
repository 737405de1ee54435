"""What may happen to one user, for hypothesis: events in batches, late, doubled, delivered again."""

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from hypothesis import strategies as st

from shared.events import SEQ_MAX, Event

ON, OFF, KICK = (
    "callbackAfterUserOnlineCommand",
    "callbackAfterUserOfflineCommand",
    "callbackAfterUserKickOffCommand",
)
COMMANDS = st.sampled_from([ON, ON, OFF, OFF, KICK])
PLATFORMS = st.integers(1, 3)
#: Some are close together, some just inside and just outside a batch, some so large that a double confuses them.
BASES = (0, 3, 59_998, 60_000, 119_999, 2**53 - 2, SEQ_MAX - 60_002, SEQ_MAX - 2)


def of_batch(command: Any, seq: int, platform_id: int, operation_id: str, number: int = 0) -> Event:
    """number: distinguishes callbacks that are otherwise equal."""
    event_id = f"{command}{seq}-{number}" if operation_id else ""
    return Event("u", command, seq, "", platform_id, "", operation_id, 1 + seq % 60_000, event_id)


@st.composite
def few_batches(draw: st.DrawFn) -> list[Event]:
    """Events of up to four batches, two of which may have one operationID; connections; events of the whole user."""
    events = []
    for number in range(draw(st.integers(1, 4))):
        base, operation_id = draw(st.sampled_from(BASES)), draw(st.sampled_from(["", f"op{number}", "two containers"]))
        for _ in range(draw(st.integers(1, 5)) if operation_id else 1):
            seq = base + draw(st.integers(0, 2))
            events.append(of_batch(draw(COMMANDS), seq, draw(PLATFORMS), operation_id, draw(st.integers(0, 2))))
    return events + draw(st.lists(unbatched(), max_size=4))


NEAR_BASES = st.sampled_from(BASES).flatmap(lambda base: st.integers(base, base + 2))


@st.composite
def unbatched(draw: st.DrawFn, seqs: st.SearchStrategy[int] = NEAR_BASES) -> Event:
    """An event of a connection, or of the whole user."""
    seq = draw(seqs)
    scope = draw(st.sampled_from([("", 0), ("a", 0), ("a", 1), ("a", 2), ("b", 3)]))
    return Event("u", draw(COMMANDS), seq, *scope, "", "op", 1 + seq % 60_000, "")


@st.composite
def many_batches(draw: st.DrawFn) -> list[list[Event]]:
    """Five to ten batches, one after another, some with the operationID of a batch a minute earlier.

    Here and there an event of the whole user takes the place of a batch.
    """
    history: list[list[Event]] = []
    base = 0
    for number in range(draw(st.integers(5, 10))):
        base += draw(st.sampled_from([10, 70_000]))
        operation_id = draw(st.sampled_from(["", f"op{number}", "often"]))
        if operation_id == "often" and base < 60_010 + max(
            (b[0].seq for b in history if b[0][6] == "often"), default=0
        ):
            operation_id = f"op{number}"
        if draw(st.integers(0, 9)) == 0:
            history.append([Event("u", draw(st.sampled_from([OFF, KICK])), base, "", 0, "", "op", base, "")])
            continue
        size = draw(st.integers(1, 5)) if operation_id else 1
        seqs = [base + draw(st.integers(0, 3)) for _ in range(size)]
        history.append([of_batch(draw(COMMANDS), seq, draw(PLATFORMS), operation_id, n) for n, seq in enumerate(seqs)])
    return history


@st.composite
def anything(draw: st.DrawFn) -> list[Event]:
    """Events of many batches that share operationIDs, in no order: most come when their batch is summed up."""
    seqs = st.sampled_from([0, 1, 2, 3, 4, 59_998, 60_001, 120_000, 180_000, 240_000])
    batched = st.builds(of_batch, COMMANDS, seqs, PLATFORMS, st.sampled_from(["", *"abcdef"]), st.integers(0, 1))
    return draw(st.lists(st.one_of(batched, batched, batched, unbatched(seqs)), min_size=1, max_size=25))


def up_to_four_late(history: Sequence[Sequence[Event]], shuffler: random.Random) -> list[Event]:
    """The events of all batches, in an order in which no event comes after four later batches have begun."""
    waiting = [list(batch) for batch in history]
    begun: set[int] = set()
    order = []
    while any(waiting):
        oldest = next(index for index, batch in enumerate(waiting) if batch)
        later = {index for index in begun if index > oldest}
        at_most = oldest if len(later) == 3 else len(waiting)
        index = shuffler.choice([i for i, batch in enumerate(waiting) if batch and (i <= at_most or i in begun)])
        order.append(waiting[index].pop(shuffler.randrange(len(waiting[index]))))
        begun.add(index)
    return order


def deliveries(events: Sequence[Event], shuffler: random.Random, most: int = 5) -> Iterator[list[Event]]:
    """The events as they may reach workers: some at a time."""
    start = 0
    while start < len(events):
        end = start + shuffler.randint(1, most)
        yield list(events[start:end])
        start = end


def again(events: Sequence[Event], shuffler: random.Random) -> list[Event]:
    """Some of the events, in another order, as a relay or a queue may deliver them again."""
    return shuffler.sample(events, shuffler.randint(0, len(events)))


def orders(events: Iterable[Event], count: int, shuffler: random.Random) -> Iterator[list[Event]]:
    events = list(events)
    for _ in range(count):
        yield shuffler.sample(events, len(events))
