"""Reading a callback: URL, operationID header and body in; one event, another's callback, or a refusal out.

Pure: no network, no clock, no disk. docs/openim-versions.md has the six shapes and the checks.
"""

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from hmac import compare_digest
from typing import Annotated, Literal, NotRequired, TypeVar
from urllib.parse import parse_qsl

import msgspec
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json
from typing_extensions import TypedDict

from shared.events import COMMANDS, SEQ_MAX, Event

#: Characters.
ID_MAX = 256
#: A longer one is cut: up to OpenIM 3.7 clients choose it, and whoever could have their events refused could hide.
OPERATION_ID_MAX = 1024

#: What every one of OpenIM's callback names looks like (pkg/callbackstruct/constant.go).
_COMMAND = re.compile(r"callback\w*Command", re.ASCII)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a callback is not accepted. Nothing of it is stored.

    status: the HTTP status. message: one short sentence. detail: what was wrong with which field. command: set if a
    release of OpenIM is known to send such a callback, so that nobody needs to be warned.
    """

    status: int
    message: str
    detail: str = ""
    command: str = ""

    def __str__(self) -> str:
        return f"{self.status} {self.message}. {self.detail}".rstrip(". ")


class Refused(Exception):
    """Carries a refusal out of a check. One instance is raised once: it keeps every frame that it went through."""

    def __init__(self, status: int, message: str, detail: str = "", command: str = "") -> None:
        super().__init__(message)
        self.refusal = Refusal(status, message, detail, command)


@dataclass(frozen=True, slots=True)
class Presence:
    """A callback about presence, or one whose URL does not say what it is about.

    command: the name in the URL, or None if only the body has it. url_form: where the URL has it, the label `shape`
    of the metric. has_query: the URL has a query that names no command, so it may have swallowed one.
    """

    command: str | None
    url_form: Literal["document", "query", "path", "body"]
    has_query: bool = False


@dataclass(frozen=True, slots=True)
class OtherCallback:
    """One of OpenIM's other callbacks: not ours to judge."""

    command: str


#: What a request's URL says: which kind of callback it is, or why it is refused.
Route = Presence | OtherCallback | Refusal

#: Longer request targets are not cached, so that nobody can fill the memory with them.
_TARGET_CACHED = 512


def check_path(target: str, prefix: str) -> None:
    """Raises Refused (404) for a request target, `/path?query` as it came, that is not at or below prefix."""
    if not prefix:
        return
    # The time that this takes must not reveal how much of a secret was right.
    path, expected = path_of(target).encode(errors="surrogatepass"), prefix.encode()
    same = compare_digest(path[: len(expected)], expected)
    if not same or path[len(expected) : len(expected) + 1] not in (b"", b"/"):
        raise Refused(404, "no callback is taken at this path")


def path_of(target: str) -> str:
    """The path of a request target, as it came."""
    path = target.partition("?")[0]
    if "://" in path:  # the absolute form, which clients send to proxies
        path = "/" + path.partition("://")[2].partition("/")[2]
    return path


def read_route(target: str) -> Route:
    """Reads the request target."""
    return _read_usual_route(target) if len(target) <= _TARGET_CACHED else _read_route(target)


def _read_route(target: str) -> Route:
    last = path_of(target).rstrip("/").rpartition("/")[2]
    in_path = last if _COMMAND.fullmatch(last) else None
    query = target.partition("?")[2]
    if in_path is None and _SWALLOWED.search(query):
        return Presence(None, "body", True)
    values = dict(parse_qsl(query, keep_blank_values=True))
    content_type = values.get("contenttype")
    in_query = values.get("command")
    command = in_path or in_query
    if trouble := _trouble(content_type, in_path, in_query):
        return trouble
    if command is None:
        return Presence(None, "body", bool(query))
    if command in COMMANDS:
        return Presence(command, "path" if in_path else "query" if content_type is None else "document")
    if _COMMAND.fullmatch(command):
        return OtherCallback(command)
    return Refusal(400, _UNKNOWN, f"command in the URL: unknown name. {_NO_QUERY}")


def _trouble(content_type: str | None, in_path: str | None, in_query: str | None) -> Refusal | None:
    """What is wrong with what a URL says, or None."""
    if content_type is not None and content_type.lower() != "json":
        return Refusal(415, "only JSON is taken", "contenttype in the URL: must be json")
    if in_path and in_query is not None and in_path != in_query:
        return Refusal(400, "the URL names two commands", "command: path and query must agree")
    return None


_read_usual_route = lru_cache(maxsize=1024)(_read_route)
_UNKNOWN = "this is not a command of OpenIM's"
#: What OpenIM appends to its configured URL as text, even if that has a query already.
_SWALLOWED = re.compile(r"(?:/|\?command=)callback\w*Command(?:[?&]contenttype=\w*)?\Z", re.ASCII)
_NO_QUERY = (
    "OpenIM appends the command to its configured URL as text, so that URL must have no query: "
    "move a secret into the path (PRESENCE_CALLBACK_PATH)"
)


#: For those who try a published example by hand: docs/openim-versions.md has one that works.
_AS_SENT = (
    "Every OpenIM since 2.1 sends seq, its clock in Unix milliseconds, and operationID; "
    "some published examples lack them"
)

_Parsed = TypeVar("_Parsed")
_Id = Annotated[str, Field(max_length=ID_MAX)]
_STRICT = ConfigDict(strict=True, hide_input_in_errors=True)


class _Named(TypedDict):
    """The part of any callback's body that says which callback it is."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]  # pydantic's documented place for it

    callbackCommand: str


class _Body(_Named):
    """The body of our six (pkg/callbackstruct/message.go and user.go)."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]

    userID: Annotated[str, Field(min_length=1, max_length=ID_MAX)]
    seq: Annotated[int, Field(ge=0, le=SEQ_MAX)]
    connID: NotRequired[_Id]
    platformID: NotRequired[Annotated[int, Field(ge=0, le=255)]]
    platform: NotRequired[_Id]
    operationID: NotRequired[str]


#: In larger bodies, fields that we do not read are removed first: pydantic would build objects of all of them, which
#: may take 1 s for 10 MB and hold up all others. msgspec skips as much in 40 ms. A callback of OpenIM's has some 250
#: bytes.
SKIM_BYTES = 1024
#: The limit for a body that could have been forwarded but turns out to be about presence.
OURS_MOST_BYTES = 1 << 20
#: The longest text that has a limit, with each character written as two escapes.
_FIELD_MOST_BYTES = 12 * ID_MAX + 2


def _skimmer(fields: Iterable[str]) -> msgspec.json.Decoder[msgspec.Struct]:
    raw = [(name, msgspec.Raw | msgspec.UnsetType, msgspec.UNSET) for name in fields]
    return msgspec.json.Decoder(msgspec.defstruct("_Skimmed", raw, omit_defaults=True))


_COMMAND_ALONE = _skimmer(_Named.__annotations__)
_OUR_FIELDS = _skimmer(_Body.__annotations__)

_NAMED = TypeAdapter(_Named)
_BODY = TypeAdapter(_Body)

_ShortText = Annotated[str, msgspec.Meta(max_length=ID_MAX)]


class _Fields(msgspec.Struct, forbid_unknown_fields=True):
    """The body of our six for msgspec, which reads it in a third of pydantic's time.

    It has every field that OpenIM sends, and no other: any other body, good or bad, is left to pydantic and `_Body`.
    """

    command: str = msgspec.field(name="callbackCommand")
    user_id: Annotated[str, msgspec.Meta(min_length=1, max_length=ID_MAX)] = msgspec.field(name="userID")
    seq: Annotated[int, msgspec.Meta(ge=0, le=SEQ_MAX)]
    conn_id: _ShortText = msgspec.field(name="connID", default="")
    platform_id: Annotated[int, msgspec.Meta(ge=0, le=255)] = msgspec.field(name="platformID", default=0)
    platform: _ShortText = ""
    operation_id: str | msgspec.UnsetType = msgspec.field(name="operationID", default=msgspec.UNSET)
    is_app_background: bool = msgspec.field(name="isAppBackground", default=False)
    token: str = ""


_USUAL = msgspec.json.Decoder(_Fields)


def read_body(
    route: Presence, operation_id: str | None, body: bytes, received_at: int, event_id: str = "", peer: str = ""
) -> Event | OtherCallback:
    """Reads the body of a request that came by `route`.

    operation_id: the header's value, None if there was none. received_at: Unix milliseconds. event_id, peer: as
    `Event` has them. Raises Refused (400).
    """
    is_large = len(body) > SKIM_BYTES
    if route.command is None:
        named = _command_in(_skim(body, _COMMAND_ALONE) if is_large else body, route)
        if named not in COMMANDS:
            if _COMMAND.fullmatch(named):
                return OtherCallback(named)
            raise Refused(400, _UNKNOWN, "callbackCommand: unknown name")
    if is_large:
        if len(body) > OURS_MOST_BYTES:
            detail = f"body: at most {OURS_MOST_BYTES} bytes if it is about presence"
            raise Refused(413, "the body is too large", detail)
        body = _skim(body, _OUR_FIELDS)
    fields = _read_fields(body)
    command = fields.command
    if route.command is not None and command != route.command:
        raise Refused(400, "URL and body name different commands", "callbackCommand: must be the URL's")
    if operation_id:
        operation_id = _text_of(operation_id)
    elif fields.operation_id is not msgspec.UNSET:
        operation_id = fields.operation_id[:OPERATION_ID_MAX]
    elif operation_id is None:  # an empty header is not absent: some gateways send only that
        raise Refused(400, "there is no operationID", f"operationID: must be in the header or in the body. {_AS_SENT}")
    event = Event(
        fields.user_id,
        command,  # type: ignore[arg-type]  # one of the six, as checked above
        fields.seq,
        fields.conn_id,
        fields.platform_id,
        fields.platform,
        operation_id,
        received_at,
        event_id,
        peer,
    )
    if body.find(b"\\u0000") >= 0 or "\0" in operation_id:  # JSON cannot hold an unescaped one
        _check_ids(event)
    return event


def _read_fields(body: bytes) -> _Fields:
    """Our fields of the body. Raises Refused (400)."""
    try:
        return _USUAL.decode(body)
    except (ValueError, RecursionError):  # msgspec.DecodeError and UnicodeError are ValueErrors
        return msgspec.convert(_parse(_BODY, body), _Fields)


def _command_in(body: bytes, route: Presence) -> str:
    """The body's `callbackCommand`, if the URL names none. Raises Refused (400)."""
    try:
        return _parse(_NAMED, body)["callbackCommand"]
    except Refused as refused:
        detail = refused.refusal.detail
        if route.has_query and detail.startswith("callbackCommand"):
            raise Refused(400, refused.refusal.message, f"{detail}. {_NO_QUERY}") from None
        raise


def _skim(body: bytes, decoder: msgspec.json.Decoder[msgspec.Struct]) -> bytes:
    """The body with only the decoder's fields. Raises Refused (400)."""
    try:
        body.decode()  # msgspec does not look at the bytes that it skips
        skimmed = decoder.decode(body)
    except msgspec.ValidationError:
        raise Refused(400, "a field is wrong", "body: must be one object") from None
    except (ValueError, RecursionError) as error:  # msgspec.DecodeError and UnicodeError are ValueErrors
        raise Refused(400, "the body is not JSON", f"Invalid JSON: {error}") from None
    for name, raw in msgspec.structs.asdict(skimmed).items():
        text = b"" if raw is msgspec.UNSET else memoryview(raw)
        is_cut = name == "operationID" and text[:1] == b'"'
        if len(text) > _FIELD_MOST_BYTES and not is_cut:
            raise Refused(400, "a field is wrong", f"{name}: is too long")
    return msgspec.json.encode(skimmed)


def _text_of(header: str) -> str:
    """A header as text: up to OpenIM 3.7 clients choose its bytes in any encoding, and that must cost no event."""
    if not header.isascii():
        header = re.sub("[\ud800-\udfff]", "\ufffd", header)  # aiohttp makes these of bytes that are not UTF-8
    return header[:OPERATION_ID_MAX]


def _check_ids(event: Event) -> None:
    """Raises Refused (400) for a NUL."""
    for name, value in (
        ("userID", event.user_id),
        ("connID", event.conn_id),
        ("operationID", event.operation_id),
    ):
        if "\0" in value:
            raise Refused(400, "a field is wrong", f"{name}: must be UTF-8 without NUL")


def _parse(adapter: TypeAdapter[_Parsed], body: bytes) -> _Parsed:
    try:
        # pydantic accepts these, but JSON lacks them. `in` would be slower: it raises and drops a TypeError first.
        if body.find(b"NaN") >= 0 or body.find(b"Infinity") >= 0:
            from_json(body, allow_inf_nan=False)
        return adapter.validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        _check_somebody(body, first["loc"])
        if first["type"] == "json_invalid":
            raise Refused(400, "the body is not JSON", first["msg"]) from None
        field = ".".join(map(str, first["loc"]))
        detail = f"{field or 'body'}: {first['msg']}"
        raise Refused(400, "a field is wrong", f"{detail}. {_AS_SENT}" if field == "seq" else detail) from None
    except ValueError as error:
        raise Refused(400, "the body is not JSON", f"Invalid JSON: {error}") from None


def _check_somebody(body: bytes, wrong: tuple[int | str, ...]) -> None:
    """Raises Refused (400), with its own reason, for the offline callback without a user of OpenIM 2.3.2 and 2.3.3.

    They send it after each kick-off, when a connection ends of which they have already forgotten everything.
    """
    if wrong != ("userID",):
        return
    with suppress(ValueError, RecursionError):
        fields = from_json(body)
        command = fields.get("callbackCommand")
        if fields.get("userID") == "" and not fields.get("platformID") and command == "callbackUserOfflineCommand":
            detail = "userID: empty, as OpenIM 2.3.2 and 2.3.3 send it after a kick-off"
            raise Refused(400, "this is nobody's offline event", detail, command)
