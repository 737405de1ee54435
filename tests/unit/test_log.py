"""Log lines: what they contain, what they cannot be made to look like, and how many there are."""

import json
import logging
from collections.abc import Iterator

import pytest

from shared.events import EVENT, describe
from shared.logs import setup as logs
from shared.logs.text import safe
from shared.logs.throttle import LogThrottle

EVENT_OF_ALICE = EVENT.validate_python(["alice", "callbackUserOnlineCommand", 7, "", 1, "IOS", "op-1", 8])


@pytest.fixture(autouse=True)
def root() -> Iterator[None]:
    logger = logging.getLogger()
    before = logger.handlers[:], logger.level
    yield
    logger.handlers[:], logger.level = before


def test_a_line_for_machines_has_the_event_s_fields_as_keys(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("info", "json")
    logging.getLogger("x").info("it %s", "works", extra=describe(EVENT_OF_ALICE))
    line = json.loads(capsys.readouterr().err)
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "logger": "x",
        "message": "it works",
        "operation_id": "op-1",
        "user_id": "alice",
        "command": "callbackUserOnlineCommand",
        "seq": 7,
    }


def test_a_line_for_people_ends_with_them(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("info", "text")
    logging.getLogger("x").info("it works", extra=describe(EVENT_OF_ALICE))
    ending = "x: it works operation_id=op-1 user_id=alice command=callbackUserOnlineCommand seq=7\n"
    assert capsys.readouterr().err.endswith(ending)


@pytest.mark.parametrize("style", ["text", "json"])
def test_an_id_cannot_forge_a_line(style: "logs.Style", capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("info", style)
    forged = EVENT_OF_ALICE._replace(user_id="x\n2026-01-01 ERROR \x1b[31m", operation_id="\u2028")
    logging.getLogger("x").info("here", extra=describe(forged))
    text = capsys.readouterr().err
    assert len(text.splitlines()) == 1
    assert "\x1b" not in text


def test_a_traceback_cannot_forge_one_either_and_other_scripts_stay_readable(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.set_up("info", "text")
    try:
        raise ValueError("x\n2026-01-01T00:00:00.000Z ERROR receiver: forged \x1b[2J")
    except ValueError:
        logging.getLogger("x").exception("用户 \u202eabc")
    first, *more = capsys.readouterr().err.splitlines()
    assert first.endswith("x: 用户 \\u202eabc")
    assert all(line.startswith("  ") and line.isprintable() for line in more)


def test_an_id_cannot_forge_a_field(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("info", "text")
    logging.getLogger("x").info("here", extra=describe(EVENT_OF_ALICE._replace(user_id="a seq=9", operation_id="")))
    assert capsys.readouterr().err.endswith(
        'here operation_id= user_id="a seq=9" command=callbackUserOnlineCommand seq=7\n'
    )


@pytest.mark.parametrize("char", ["\n", "\r", "\x1b", "\x9b", "\x7f", "\u200f", "\u202e", "\u2066", "\u2028", "\ud800"])
def test_what_steers_a_terminal_is_made_visible(char: str) -> None:
    assert safe(f"a{char}b").isascii()
    assert safe(f"a{char}b").isprintable()
    assert safe("Zoë 用户 👍") == "Zoë 用户 👍"


@pytest.mark.parametrize("thing", [None, 7, {"no": "event"}, [], ["alice"], ["alice", {}, [1]]])
def test_whatever_is_in_an_event_s_place_can_be_described(thing: object) -> None:
    assert set(describe(thing)) == {"user_id", "command", "seq", "operation_id"}


def test_repeated_trouble_is_told_a_few_times_and_then_summed_up(caplog: pytest.LogCaptureFixture) -> None:
    seldom = LogThrottle(logging.getLogger("x"), most=2, seconds=600)
    for number in range(5):
        seldom.say(logging.ERROR, "trouble %d", number)
    assert caplog.messages == ["trouble 0", "trouble 1"]
    seldom._until = 0.0  # the span is over
    seldom.say(logging.ERROR, "trouble 5")
    assert caplog.messages[2:] == ["3 more such lines were left out", "trouble 5"]
