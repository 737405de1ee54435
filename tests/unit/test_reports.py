"""A receiver's report about itself, encoded and decoded."""

import json

import pytest

from shared.reports import Report, decode, encode

REPORT = Report("host:1", 10_000, 9_000, 3, 400, "the disk is full", 8_000, 250, "f00d", 1, 99, "no Sentinel answers")


def test_a_report_comes_back_as_it_was() -> None:
    assert decode(b"f00d", encode(REPORT).encode()) == REPORT


def test_older_workers_find_what_they_know_by_the_clock_of_the_receiver() -> None:
    said = json.loads(encode(REPORT))
    assert {name: said[name] for name in ("at", "well", "mark", "events", "bytes", "trouble", "skew")} == {
        "at": 10_250,
        "well": 8_250,
        "mark": 9_250,
        "events": 3,
        "bytes": 400,
        "trouble": "the disk is full",
        "skew": 250,
    }


def test_a_report_of_an_older_release_is_read() -> None:
    text = b'{"at": 5, "mark": 4, "events": 0, "bytes": 0}'
    assert decode(b"host:1", text) == Report("host:1", 5, 4, 0, 0, healthy_at_ms=5, id="host:1")


@pytest.mark.parametrize("text", [b"", b"junk", b"[]", b"7", b"{}", b'{"at": "x", "mark": 1, "events": 1, "bytes": 1}'])
def test_what_is_no_report_says_so(text: bytes) -> None:
    with pytest.raises(ValueError, match="not a receiver's report"):
        decode(b"junk", text)


def test_a_watermark_that_nobody_knows_stays_unknown_whatever_the_clocks() -> None:
    report = Report("host:1", 10_000, 0, 0, 0, skew_ms=-300, id="f00d")
    assert json.loads(encode(report))["mark"] == 0
    assert decode(b"f00d", encode(report).encode()).watermark_ms == 0
