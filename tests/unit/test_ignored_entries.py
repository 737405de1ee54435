"""Entries of the stream of events that changed nothing."""

import pytest

from shared import ignored


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {b"outcome": b"odd", b"event": b'["alice","callbackUserOnlineCommand",5,"",5,"","",7]'},
        {b"outcome": b"stale", b"event": b"[]"},
        {b"outcome": b"stale", b"event": b"\xff"},
    ],
)
def test_what_is_no_such_entry_is_passed_over(fields: dict[bytes, bytes]) -> None:
    assert ignored.read(b"1-0", fields) is None
