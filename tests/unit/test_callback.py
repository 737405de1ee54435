"""Reading callbacks: the recorded payloads, as table rows."""

from time import perf_counter
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import load_samples, same_answer

from receiver import callback
from receiver.callback import (
    SKIM_BYTES,
    OtherCallback,
    Presence,
    Refusal,
    Refused,
    check_path,
    read_body,
    read_route,
)
from receiver.http import answers
from shared.events import EVENT, Event, encode

#: These are refused because of more than URL and body; tests/integration/test_http.py has them.
OUTSIDE = ("method-", "too-large", "content-type-text", "content-type-form", "content-type-latin1")
OUTSIDE += ("content-type-jsonp", "content-type-absent", "content-encoding", "content-type-before")


def judge(
    target: str, body: bytes, header: str | None = None, prefix: str = "", peer: str = ""
) -> tuple[Presence, Event] | OtherCallback | Refusal:
    """What becomes of a request: the event that is stored, a foreign callback, or why it is neither."""
    try:
        check_path(target, prefix)
        route = read_route(target)
        if not isinstance(route, Presence):
            return route
        event = read_body(route, header, body, 7, "1f", peer)
        return event if isinstance(event, OtherCallback) else (route, event)
    except Refused as refused:
        return refused.refusal


def read(sample: dict[str, Any]) -> tuple[Presence, Event] | OtherCallback | Refusal:
    prefix = sample.get("settings", {}).get("callback_path", "")
    return judge(sample["target"], sample["body"], sample["headers"].get("operationID"), prefix, "10.0.0.7")


def named(samples: list[dict[str, Any]]) -> Any:
    return pytest.mark.parametrize("sample", samples, ids=lambda sample: sample["name"])


@named(load_samples("accepted"))
def test_an_accepted_callback_becomes_its_event(sample: dict[str, Any]) -> None:
    route, event = read(sample)  # type: ignore[misc]
    assert event._asdict() == {**sample["event"], "received_at": 7, "id": "1f", "peer": "10.0.0.7"}
    assert same_answer(answers.accepted(route), sample["answer"])


@named([sample for sample in load_samples("refused") if not sample["name"].startswith(OUTSIDE)])
def test_a_refused_callback_says_what_was_wrong(sample: dict[str, Any]) -> None:
    refusal = read(sample)
    assert isinstance(refusal, Refusal)
    assert refusal.status == sample["status"]
    assert same_answer(answers.refused(refusal), sample["answer"])


@named(load_samples("foreign"))
def test_a_foreign_callback_is_told_from_a_wrong_one(sample: dict[str, Any]) -> None:
    other = read(sample)
    assert isinstance(other, OtherCallback)
    assert same_answer(answers.not_ours(other), sample["answer"])


def test_there_are_at_least_forty_kinds_of_refusal() -> None:
    assert len(load_samples("refused")) >= 40


OURS = b'{"userID":"u","callbackCommand":"callbackUserOfflineCommand","seq":1}'


def test_an_operation_id_with_a_nul_is_refused() -> None:
    assert isinstance(judge("/", OURS, "a\0b"), Refusal)


@pytest.mark.parametrize(
    ("header", "stored"),
    [("caf\udce9", "caf\ufffd"), ("\udcd6\udcd0", "\ufffd\ufffd"), ("\ud800", "\ufffd"), ("x" * 5000, "x" * 1024)],
)
def test_an_operation_id_of_any_bytes_costs_no_event(header: str, stored: str) -> None:
    _, event = judge("/", OURS, header)  # type: ignore[misc]
    assert event.operation_id == stored
    assert EVENT.validate_json(encode(event)) == event


@pytest.mark.parametrize(("field", "most"), [("platform", 256), ("connID", 256)])
def test_texts_have_a_limit(field: str, most: int) -> None:
    for size, is_taken in ((most, True), (most + 1, False), (100_000, False)):
        body = OURS[:-1] + b',"operationID":"op","%s":"%s"}' % (field.encode(), b"\\u4e2d" * size)
        found = judge("/", body)
        assert isinstance(found, tuple) == is_taken, found
        if isinstance(found, Refusal):
            assert field in found.detail


@pytest.mark.parametrize("size", [1024, 1025, 5000, 100_000])
def test_a_long_operation_id_in_the_body_costs_no_event(size: int) -> None:
    """Up to OpenIM 3.7 clients choose it. Whoever could have their own offline callback refused would stay online."""
    for header in (None, "", "x" * size):
        _, event = judge("/", OURS[:-1] + b',"operationID":"%s"}' % (b"x" * size), header)  # type: ignore[misc]
        assert event.operation_id == "x" * 1024


def test_what_is_large_in_a_field_that_is_read_is_not_built() -> None:
    """pydantic took seconds for 10 MB, and all other requests waited."""
    array = b"[" + b'{"a":0},' * 1_200_000 + b"0]"
    for field in (b"userID", b"operationID", b"callbackCommand"):
        for command in (b"callbackUserOfflineCommand", b"callbackBeforeSendSingleMsgCommand"):
            body = b'{"callbackCommand":"%s","seq":1,"%s":%s}' % (command, field, array)
            began = perf_counter()
            found = judge("/", body)
            assert perf_counter() - began < 10 * seconds_to_skip(body)
            assert isinstance(found, Refusal) or command.startswith(b"callbackBefore")


def seconds_to_skip(body: bytes) -> float:
    """How long this machine takes to find out whether it is JSON at all."""
    began = perf_counter()
    msgspec.json.decode(body, type=msgspec.Raw)
    return perf_counter() - began


@given(st.text(), st.binary(), st.one_of(st.none(), st.text()))
def test_no_input_raises_anything(target: str, body: bytes, header: str | None) -> None:
    found = judge(target, body, header)
    if isinstance(found, Refusal):
        assert answers.refused(found)
    elif isinstance(found, OtherCallback):
        assert answers.not_ours(found)


def test_a_route_is_read_once_and_long_ones_are_not_kept() -> None:
    assert read_route("/callbackUserOnlineCommand") is read_route("/callbackUserOnlineCommand")
    long = "/" + "x" * 600
    assert read_route(long) == read_route("/")
    assert read_route(long) is not read_route(long)


FILLER = b"x" * SKIM_BYTES


@named([sample for kind in ("accepted", "refused", "foreign") for sample in load_samples(kind)])
def test_a_large_body_is_judged_as_a_small_one(sample: dict[str, Any]) -> None:
    """If the body is an object, so that a field can be added that nobody reads."""
    body = sample["body"].strip()
    if sample["name"].startswith(OUTSIDE) or not (body.startswith(b"{") and body.endswith(b"}") and len(body) > 2):
        return
    large = {**sample, "body": b'{"filler":[{"callbackCommand":1},"%s"],' % FILLER + body[1:]}
    found, expected = read(large), read(sample)
    if isinstance(expected, Refusal):
        assert isinstance(found, Refusal)
        assert found.status == expected.status
    else:
        assert found == expected


@pytest.mark.parametrize(
    "body",
    [
        *(b'["%s"]', b'"%s"', b'{"%s":1}', b'{"a":"%s', b'{"a":"%s"} x', b'{"a":"%s","b":NaN}'),
        b'{"callbackCommand":"callbackUserOfflineCommand","userID":"u","seq":1,"operationID":"","%s":"\xff"}',
    ],
)
def test_a_large_body_that_names_nothing_is_refused(body: bytes) -> None:
    refusal = judge("/", body % FILLER)
    assert isinstance(refusal, Refusal)
    assert refusal.status == 400


def test_a_large_body_that_is_nested_too_deep_is_refused() -> None:
    refusal = judge("/", b'{"a":' + b"[" * 100_000)
    assert isinstance(refusal, Refusal)
    assert refusal.status == 400


BODIES = [
    b'{"userID":"user1","callbackCommand":"callbackAfterUserOfflineCommand","seq":17,"connID":"","platformID":2,'
    b'"platform":"Android","operationID":"p_3_4"}',
    b'{"userID":"\xc3\xa9\\ud83d\\ude00","callbackCommand":"callbackUserOnlineCommand","seq":0,"token":"t",'
    b'"isAppBackground":true,"operationID":""}',
]
PIECES = [
    *(b'"', b"{", b"}", b"[", b"]", b":", b",", b" ", b"\t", b"\x0b", b"\xef\xbb\xbf", b"\x00", b"\x01", b"\x7f"),
    *(b"\\", b"\\/", b"\\x", b"\\ud800", b"\\udc00", b"\\u0000", b"\xff", b"\xed\xa0\x80", b"x" * 257),
    *(b"1.0", b"1e3", b"-0", b"-1", b"+1", b".5", b"00", b"9223372036854775807", b"9223372036854775808", b"1" * 30),
    *(b"null", b"true", b"NaN", b"Infinity", b'"seq":5,', b'"s\\u0065q":7,', b'"userID":"",', b'"userID":"x",'),
    *(b'"other":1,', b'"token":"a",', b'"token":null,', b'"isAppBackground":null,', b'"operationID":null,'),
    *(b'"platformID":0,', b'"platformID":256,', b'"connID":"%s",' % (b"x" * 256), b'"connID":"%s",' % (b"x" * 257)),
]
edits = st.lists(st.tuples(st.sampled_from(PIECES), st.integers(0, 180), st.integers(0, 4)), max_size=3)


@settings(max_examples=1000)
@given(st.sampled_from(BODIES), edits)
def test_the_two_readers_of_a_body_agree(body: bytes, edits: list[tuple[bytes, int, int]]) -> None:
    """msgspec takes nothing that pydantic would refuse, and reads the same from it."""
    for piece, at, replaced in edits:
        body = body[:at] + piece + body[at + replaced :]
    quick = judge("/", body)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callback, "_USUAL", msgspec.json.Decoder(int))  # no body is one
        assert judge("/", body) == quick


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=5,
)


@given(
    st.fixed_dictionaries(
        {"callbackCommand": st.sampled_from(["callbackUserOnlineCommand", "callbackAfterUserKickOffCommand"])},
        optional={
            "userID": st.text() | json_values,
            "seq": st.integers() | json_values,
            "connID": st.text() | json_values,
            "platformID": st.integers(-1, 300) | json_values,
            "platform": st.text() | json_values,
            "operationID": st.text() | json_values,
        },
    )
)
def test_whatever_is_accepted_survives_the_way_to_the_worker(body: dict[str, Any]) -> None:
    import json

    found = judge("/", json.dumps(body).encode())
    if isinstance(found, Refusal):
        return
    assert not isinstance(found, OtherCallback)
    _, event = found
    line = encode(event)
    assert b"\n" not in line
    assert EVENT.validate_python(json.loads(line)) == event
