"""Refusals: how many lines they log, how much is remembered, and when they show that OpenIM's callbacks are refused."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from receiver import lately as lately_module
from receiver.callback import Refusal
from receiver.lately import LATELY_MS, Lately
from shared.events import EVENT
from shared.logs.throttle import LogBudgets
from shared.observe import health
from shared.observe.edge import LastCallback, RefusedLately, added_up, newest_callbacks, of_openim_unheard
from shared.observe.readiness import Readiness, combine, readiness_of
from shared.observe.snapshot import PresenceState, QueueState, Server, Snapshot
from shared.settings import Settings

NOW = 1_700_000_000_000
UNAUTHORIZED = Refusal(401, "callbacks must carry the configured user and password", "Authorization: absent or wrong")


class Clock:
    """A loop's `call_later`, with a clock that the test sets."""

    def __init__(self) -> None:
        self.calls: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []

    def call_later(self, seconds: float, function: Callable[..., Any], *arguments: Any) -> None:
        self.calls.append((function, arguments))

    def pass_a_span(self) -> None:
        calls, self.calls = self.calls, []
        for function, arguments in calls:
            function(*arguments)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def say(clock: Clock) -> Callable[..., None]:
    budgets = LogBudgets(logging.getLogger("x"), most=3)

    def say(key: object, line: str) -> None:
        budgets.say(clock.call_later, key, "crowd", 10, line)

    return say


def test_each_key_has_a_line_of_its_own_and_what_was_left_out_is_counted(
    clock: Clock, say: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(5):
        say("a", f"a{number}")
    say("b", "b0")
    assert caplog.messages == ["a0", "b0"]
    clock.pass_a_span()
    assert caplog.messages[2:] == ["a4 (and 3 more like it in 10 s)"]
    say("a", "a5")
    clock.pass_a_span()
    assert caplog.messages[3:] == ["a5"]
    clock.pass_a_span()
    say("a", "a6")
    assert caplog.messages[4:] == ["a6"]


def test_a_crowd_of_keys_shares_a_line_and_leaves_no_memory(
    clock: Clock, say: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(1000):
        say(number, f"line {number}")
    assert caplog.messages == ["line 0", "line 1", "line 2", "line 3"]
    assert len(clock.calls) == 4
    clock.pass_a_span()
    assert caplog.messages[4:] == ["line 999 (and 995 more like it in 10 s)"]
    clock.pass_a_span()
    assert clock.calls == []


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    return lambda now: monkeypatch.setattr(lately_module, "_now_ms", lambda: now)


def test_refusals_are_remembered_by_their_reasons_and_for_a_while(at: Callable[[int], None]) -> None:
    lately = Lately()
    at(NOW)
    for number in range(1000):
        lately.refused(Refusal(400, "a field is wrong", f"{'x' * 1000}{number}"), f"192.0.2.{number % 250}", False)
    at(NOW + 5)
    lately.refused(UNAUTHORIZED, "10.0.0.7", True)
    lately.refused(UNAUTHORIZED, "10.0.0.8", False)
    openim, fields, probe = lately.refusals()
    assert (fields.count, fields.since_ms, fields.at_ms, fields.peer, len(fields.detail)) == (
        *(1000, NOW, NOW, "192.0.2.249", 200),
    )
    assert (openim.peer, openim.probe, probe.peer, probe.probe) == ("10.0.0.8", False, "10.0.0.7", True)
    at(NOW + LATELY_MS + 1)
    assert {each.status for each in lately.refusals()} == {401}
    lately.refused(Refusal(400, "a field is wrong"), "10.0.0.7", False)
    assert lately.refusals()[0].count == 1


def test_the_newest_callback_of_each_kind_is_remembered(at: Callable[[int], None]) -> None:
    lately = Lately()
    fields = ["alice", "callbackUserOnlineCommand", 7, "", 1, "IOS", "op-1", NOW, "id", "10.0.0.7"]
    event = EVENT.validate_python(fields)
    lately.accepted[event.command] = event
    at(NOW + 5)
    for number in range(1000):
        lately.foreign(f"callback{number}{'x' * 1000}Command", "10.0.0.8")
    foreign, online = lately.callbacks()
    assert online == LastCallback("callbackUserOnlineCommand", NOW, "10.0.0.7")
    assert (foreign.command[:11], len(foreign.command), foreign.at_ms) == ("callback999", 100, NOW + 5)


AWAY = Server(error="refused")
TAKEN = LastCallback("callbackUserOnlineCommand", NOW, "10.0.0.7")
AFTER = RefusedLately(401, "no", "", "10.0.0.7", 3, NOW + 1, NOW + 9)


def refusal(**changes: Any) -> RefusedLately:
    return replace(AFTER, **changes)


@pytest.mark.parametrize(
    ("callbacks", "refused", "is_heard"),
    [
        ([], [], True),
        ([TAKEN], [], True),
        ([], [refusal(count=1)], False),
        ([], [refusal(probe=True)], True),
        ([], [refusal(status=503)], True),
        ([TAKEN], [AFTER], False),
        ([TAKEN], [refusal(probe=True)], True),
        ([TAKEN], [refusal(count=2)], True),
        ([TAKEN], [refusal(since_ms=NOW - 1)], True),
        ([TAKEN], [refusal(peer="192.0.2.1")], True),
    ],
    ids=[
        "a quiet one",
        "nothing refused",
        "nothing was ever taken",
        "nothing came but probes",
        "the journal is full, which is said elsewhere",
        "a peer of whom nothing is taken any more",
        "its probes are refused",
        "two odd ones",
        "some are taken and some not",
        "a stranger",
    ],
)
def test_what_shows_that_openim_is_not_heard(
    callbacks: list[LastCallback], refused: list[RefusedLately], is_heard: bool
) -> None:
    assert bool(of_openim_unheard(callbacks, refused)) != is_heard
    here = Readiness(callbacks=tuple(callbacks), refused=tuple(refused))
    problems = health.problems(Snapshot(NOW, QueueState(AWAY), PresenceState(AWAY)), Settings(), here)
    assert any("every callback is refused" in each for each in problems) != is_heard


def test_several_processes_are_added_up_and_read_back() -> None:
    older = LastCallback(TAKEN.command, NOW - 5, "10.0.0.9")
    other = refusal(peer="10.0.0.8", count=4, since_ms=NOW - 1, at_ms=NOW + 20)
    both = combine([Readiness(callbacks=(TAKEN,), refused=(AFTER,)), Readiness(callbacks=(older,), refused=(other,))])
    assert both.callbacks == newest_callbacks([older, TAKEN]) == (TAKEN,)
    assert (
        both.refused
        == added_up([other, AFTER])
        == (refusal(peer="10.0.0.8", count=7, since_ms=NOW - 1, at_ms=NOW + 20),)
    )
    assert readiness_of(both.as_json()) == both
