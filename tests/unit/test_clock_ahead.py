"""Which seqs show a clock that is ahead."""

import pytest

from shared.events import Event
from worker.clock_ahead import correct, is_ahead

RECEIVED_AT = 1_795_569_386_187
MINUTE = 60_000


def event(seq: int, received_at: int = RECEIVED_AT) -> Event:
    return Event("alice", "callbackAfterUserOnlineCommand", seq, "", 1, "IOS", "p_7_1", received_at, "id", "10.0.0.7")


@pytest.mark.parametrize(
    ("seq", "counts_as"),
    [
        (RECEIVED_AT + 8 * 60 * MINUTE, RECEIVED_AT),
        (RECEIVED_AT + MINUTE + 1, RECEIVED_AT),
        (RECEIVED_AT + MINUTE, RECEIVED_AT + MINUTE),  # what clocks may differ by
        (RECEIVED_AT - 8 * 60 * MINUTE, RECEIVED_AT - 8 * 60 * MINUTE),  # behind: or merely late
        (10**13, RECEIVED_AT),
        (10**13 + 1, 10**13 + 1),  # not a time in milliseconds
        (2**63 - 1, 2**63 - 1),
        (1, 1),
    ],
)
def test_a_clock_that_is_ahead_counts_as_the_receivers(seq: int, counts_as: int) -> None:
    assert correct(event(seq)) == event(seq)._replace(seq=counts_as)
    assert is_ahead(event(seq)) == (seq != counts_as)


def test_a_small_seq_is_no_clock_however_early_it_was_received() -> None:
    assert correct(event(10**12 - 1, received_at=1)).seq == 10**12 - 1
    assert correct(event(10**12, received_at=1)).seq == 1
