"""The gateways that `presence send` simulates send what real ones sent: scenario by scenario, batch by batch."""

from collections import Counter
from collections.abc import Iterator

import pytest
import recorded

from shared.cli.gateways import Callback, Gateways

Script = Iterator[int]  # each number is a gateway that sends its batch then


def login_logout(im: Gateways) -> Script:
    for _ in ("in order", "cut"):
        phone = im.open("alice", 1)
        yield 0
        im.close(phone)
        yield 0


def two_platforms(im: Gateways) -> Script:
    phone, web = im.open("alice", 1), im.open("alice", 5)
    yield 0
    yield 0
    for each in (phone, web):
        im.close(each)
        yield 0


def same_token_again(im: Gateways) -> Script:
    first = im.open("alice", 1)
    yield 0
    im.open("alice", 1)
    yield 0
    im.close(first)
    yield 0


def new_token_same_platform(im: Gateways) -> Script:
    first = im.open("alice", 1, "old")
    yield 0
    second = im.open("alice", 1, "new")
    im.close(first)  # kicked: nothing more comes of it
    yield 0
    yield 0
    im.close(second)
    yield 0


def reconnect_at_once(im: Gateways) -> Script:
    phone = im.open("alice", 1)
    yield 0
    for _ in range(4):
        im.close(phone)
        phone = im.open("alice", 1)
        yield 0
        yield 0
    im.close(phone)
    yield 0  # after a second it was not at once
    im.open("alice", 1)
    yield 0


def in_and_out_within_a_second(im: Gateways) -> Script:
    for second_passes_meanwhile in (False, False, True, False):
        phone = im.open("bob", 2)
        if second_passes_meanwhile:
            yield 0
        im.close(phone)
        yield 0


def forced_logout(im: Gateways) -> Script:
    im.open("alice", 1, "phone"), im.open("alice", 5, "web")
    yield 0
    yield 0
    im.end("alice", 1)
    yield 0


def moves_between_gateways(im: Gateways) -> Script:
    first = im.open("alice", 1)
    yield 0
    second = im.open("alice", 1, gateway=1)
    yield 1
    im.close(first)
    yield from (0, 1)
    im.close(second)
    third = im.open("alice", 1)
    yield from (0, 1, 0)
    im.close(third)
    im.open("alice", 1, "new", gateway=1)
    yield from (0, 1)


def two_gateways(im: Gateways) -> Script:
    im.open("alice", 1), im.open("alice", 5, gateway=1)
    yield from (0, 1)
    im.open("alice", 5)  # the other one was killed
    yield 0


SCRIPTS = [
    login_logout,
    two_platforms,
    same_token_again,
    new_token_same_platform,
    reconnect_at_once,
    in_and_out_within_a_second,
    forced_logout,
    moves_between_gateways,
    two_gateways,
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_a_played_gateway_calls_back_what_a_real_one_did(script: recorded.Any) -> None:
    calls = recorded.load(script.__name__.replace("_", "-")).calls
    expected = Counter(Callback(c.kind.capitalize(), c.user_id, c.platform_id, c.operation_id) for c in calls)
    pids = list(dict.fromkeys(int(call.operation_id.split("_")[1]) for call in calls))
    im = Gateways(*pids)
    assert Counter(each for gateway in script(im) for each in im.second_passes(gateway)) == expected


def test_a_second_in_which_nothing_happens_is_no_batch() -> None:
    im = Gateways(7)
    assert im.second_passes() == []
    im.open("alice", 1)
    assert [each.operation_id for each in im.second_passes()] == ["p_7_1"]
    assert im.second_passes() == []
