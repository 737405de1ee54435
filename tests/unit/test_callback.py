"""Reading callbacks: the recorded payloads, as table rows."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import load_samples, same_answer

from receiver.callback import (
    SKIM_BYTES,
    OtherCallback,
    Refused,
    accepted,
    check_path,
    not_ours,
    read_body,
    read_target,
    refused,
)
from shared.events import EVENT, Event, encode

#: Refused by what the request says besides its URL and body; tests/integration/test_http.py has them.
OUTSIDE = ("method-", "too-large", "content-type-text", "content-type-form", "content-type-latin1")
OUTSIDE += ("content-type-jsonp", "content-type-absent", "content-encoding", "content-type-before")


def read(sample: dict[str, Any]) -> Event:
    check_path(sample["target"], sample.get("settings", {}).get("callback_path", ""))
    target = read_target(sample["target"])
    return read_body(target, sample["headers"].get("operationID"), sample["body"], 7, "1f", "10.0.0.7")


def named(samples: list[dict[str, Any]]) -> Any:
    return pytest.mark.parametrize("sample", samples, ids=lambda sample: sample["name"])


@named(load_samples("accepted"))
def test_an_accepted_callback_becomes_its_event(sample: dict[str, Any]) -> None:
    event = read(sample)
    assert event._asdict() == {**sample["event"], "received_at": 7, "id": "1f", "peer": "10.0.0.7"}
    assert same_answer(accepted(read_target(sample["target"])), sample["answer"])


@named([sample for sample in load_samples("refused") if not sample["name"].startswith(OUTSIDE)])
def test_a_refused_callback_says_what_was_wrong(sample: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refusal:
        read(sample)
    assert refusal.value.status == sample["status"]
    assert same_answer(refused(refusal.value), sample["answer"])


@named(load_samples("foreign"))
def test_a_foreign_callback_is_told_from_a_wrong_one(sample: dict[str, Any]) -> None:
    with pytest.raises(OtherCallback) as foreign:
        read(sample)
    assert same_answer(not_ours(foreign.value), sample["answer"])


def test_there_are_at_least_forty_kinds_of_refusal() -> None:
    assert len(load_samples("refused")) >= 40


@pytest.mark.parametrize("header", ["a\0b", "caf\udce9"])
def test_an_operation_id_that_is_no_text_is_refused(header: str) -> None:
    body = b'{"userID":"u","callbackCommand":"callbackUserOfflineCommand","seq":1}'
    with pytest.raises(Refused):
        read_body(read_target("/"), header, body, 7)


@given(st.text(), st.binary(), st.one_of(st.none(), st.text()))
def test_no_input_raises_anything_else(target: str, body: bytes, header: str | None) -> None:
    try:
        read_body(read_target(target), header, body, 7)
    except (Refused, OtherCallback) as error:
        assert (refused if isinstance(error, Refused) else not_ours)(error)  # type: ignore[operator]


FILLER = b"x" * SKIM_BYTES


@named([sample for kind in ("accepted", "refused", "foreign") for sample in load_samples(kind)])
def test_a_large_body_is_judged_as_a_small_one(sample: dict[str, Any]) -> None:
    """Where it is an object at all, so that something can be added that nobody reads."""
    body = sample["body"].strip()
    if sample["name"].startswith(OUTSIDE) or not (body.startswith(b"{") and body.endswith(b"}") and len(body) > 2):
        return
    large = {**sample, "body": b'{"filler":[{"callbackCommand":1},"%s"],' % FILLER + body[1:]}
    assert judged(large) == judged(sample)


def judged(sample: dict[str, Any]) -> Any:
    try:
        return read(sample)
    except Refused as refusal:
        return refusal.status
    except OtherCallback as foreign:
        return foreign.command


@pytest.mark.parametrize(
    "body",
    [
        *(b'["%s"]', b'"%s"', b'{"%s":1}', b'{"a":"%s', b'{"a":"%s"} x', b'{"a":"%s","b":NaN}'),
        b'{"callbackCommand":"callbackUserOfflineCommand","userID":"u","seq":1,"operationID":"","%s":"\xff"}',
    ],
)
def test_a_large_body_that_names_nothing_is_refused(body: bytes) -> None:
    with pytest.raises(Refused) as refusal:
        read_body(read_target("/"), None, body % FILLER, 7)
    assert refusal.value.status == 400


def test_a_large_body_that_is_nested_too_deep_is_refused() -> None:
    with pytest.raises(Refused) as refusal:
        read_body(read_target("/"), None, b'{"a":' + b"[" * 100_000, 7)
    assert refusal.value.status == 400


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

    try:
        event = read_body(read_target("/"), None, json.dumps(body).encode(), 7)
    except Refused:
        return
    line = encode(event)
    assert b"\n" not in line
    assert EVENT.validate_python(json.loads(line)) == event
