"""The event: one accepted callback, as it travels from the receiver to the workers."""

from typing import Annotated, Any, Literal, NamedTuple, get_args

import msgspec
from pydantic import Field, StrictInt, StrictStr, TypeAdapter
from pydantic_core import from_json

Kind = Literal["online", "offline"]

SEQ_MAX = 2**63 - 1

#: OpenIM's six command names. Source: open-im-server, pkg/callbackstruct/constant.go: the first
#: three at v2.3.3, v3.4.0 and v3.6.0, the last three at v3.7.0 and v3.8.2.
Callback = Literal[
    "callbackUserOnlineCommand",
    "callbackUserOfflineCommand",
    "callbackUserKickOffCommand",
    "callbackAfterUserOnlineCommand",
    "callbackAfterUserOfflineCommand",
    "callbackAfterUserKickOffCommand",
]

#: Our own events, made if OpenIM was asked and we were wrong (shared/truth). They have no operationID.
Correction = Literal["reconciled_online", "reconciled_offline"]

Command = Literal[Callback, Correction]

#: What each command does to a session; a kick-off is an offline event.
KINDS: dict[str, Kind] = {name: "online" if "online" in name.lower() else "offline" for name in get_args(Command)}
#: The same for OpenIM's commands alone.
COMMANDS: dict[str, Kind] = {name: KINDS[name] for name in get_args(Callback)}


class Event(NamedTuple):
    """One accepted callback, or a correction. It travels as a JSON array of these fields: new ones go at the end, and
    have a default.

    user_id: 1 to 256 characters. seq: OpenIM's clock, Unix milliseconds, 0 to 2**63-1.
    conn_id: empty if OpenIM names no connection. platform_id: 0 if it names no platform.
    received_at: Unix milliseconds at which the receiver took the callback. id: identifies this callback among those
    with the same user, platform and operationID, however often it is delivered. peer: the address that it came from.
    Receivers of older releases sent neither; then both are empty.
    """

    user_id: Annotated[StrictStr, Field(min_length=1)]
    command: Command
    seq: Annotated[StrictInt, Field(ge=0, le=SEQ_MAX)]
    conn_id: StrictStr
    platform_id: Annotated[StrictInt, Field(ge=0, le=255)]
    platform: StrictStr
    operation_id: StrictStr
    received_at: Annotated[StrictInt, Field(ge=0)]
    id: StrictStr = ""
    peer: StrictStr = ""

    @property
    def kind(self) -> Kind:
        return KINDS[self.command]


def encode(event: Event) -> bytes:
    """The event as one JSON array without a newline."""
    return msgspec.json.encode(event)


def received_at(encoded: bytes) -> int:
    """When the receiver took an event that `encode` wrote, Unix milliseconds; 0 if that cannot be read."""
    try:
        return int(from_json(encoded)[Event._fields.index("received_at")])
    except (ValueError, LookupError, TypeError):
        return 0


#: The fields of an event that a log line or a list shows.
NAMED = ("user_id", "command", "seq", "operation_id")


def describe(event: object) -> dict[str, Any]:
    """The NAMED fields of an Event, or of whatever a job has in its place; "" for those that it lacks."""
    fields = dict(zip(Event._fields, event, strict=False)) if isinstance(event, (list, tuple)) else {}
    return {name: fields.get(name, "") for name in NAMED}


#: Reads what `encode` wrote; `validate_python` and `validate_json` raise pydantic's ValidationError.
EVENT: TypeAdapter[Event] = TypeAdapter(Event)
EVENTS: TypeAdapter[list[Event]] = TypeAdapter(list[Event])
