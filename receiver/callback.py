"""Reading a callback: URL, operationID header and body in; one event, or one refusal, out.

Pure: no network, no clock, no disk. What the five shapes look like is in SPEC 1 and docs/openim-versions.md.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal, TypeVar
from urllib.parse import parse_qsl

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json

from shared.events import COMMANDS, SEQ_MAX, Event

ID_MAX = 256

#: What every one of OpenIM's callback names looks like (pkg/callbackstruct/constant.go).
_COMMAND = re.compile(r"callback\w*Command", re.ASCII)


class Refused(Exception):
    """The callback is not accepted. Nothing of it is stored.

    status: the HTTP status. message: one short sentence. detail: what was wrong with which field.
    """

    def __init__(self, status: int, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.detail = detail


class Foreign(Exception):
    """One of OpenIM's other callbacks: not ours to judge."""

    def __init__(self, command: str) -> None:
        super().__init__(command)
        self.command = command


@dataclass(frozen=True, slots=True)
class Target:
    """What a request's URL says.

    command: the name in it, or None where the body alone has it. shape: which of OpenIM's URL forms.
    next_code: as JSON; the published document answers with a string, every release decodes a number.
    """

    command: str | None
    shape: Literal["document", "query", "path", "body"]

    @property
    def next_code(self) -> bytes:
        return b'""' if self.shape == "document" else b"0"


@lru_cache(maxsize=1024)
def read_target(target: str, prefix: str = "") -> Target:
    """Reads the request target, `/path?query` as it came, which must be at or below prefix.

    Raises Refused (404, 415 or 400) and Foreign.
    """
    path, _, query = target.partition("?")
    if prefix and path != prefix and not path.startswith(prefix + "/"):
        raise Refused(404, "no callback is taken at this path")
    values = dict(parse_qsl(query, keep_blank_values=True))
    content_type = values.get("contenttype")
    if content_type is not None and content_type.lower() != "json":
        raise Refused(415, "only JSON is taken", "contenttype in the URL: must be json")

    last = path.rstrip("/").rpartition("/")[2]
    in_path = last if _COMMAND.fullmatch(last) else None
    in_query = values.get("command")
    if in_path and in_query is not None and in_path != in_query:
        raise Refused(400, "the URL names two commands", "command: path and query must agree")
    command = in_path or in_query
    if command is not None:
        check_command(command)
    if in_path:
        return Target(command, "path")
    if in_query is None:
        return Target(None, "body")
    return Target(command, "query" if content_type is None else "document")


def check_command(command: str) -> None:
    """Raises Foreign for a callback of OpenIM's that is not ours, Refused (400) for what is none."""
    if command in COMMANDS:
        return
    if _COMMAND.fullmatch(command):
        raise Foreign(command)
    raise Refused(400, "this is not a command of OpenIM's", "callbackCommand: unknown name")


def _without_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not contain NUL")
    return value


_NO_NUL = AfterValidator(_without_nul)


_Model = TypeVar("_Model", bound=BaseModel)


class _Named(BaseModel):
    """As much of any callback's body as says whose it is."""

    model_config = ConfigDict(strict=True, hide_input_in_errors=True)

    command: str = Field(alias="callbackCommand")


class _Body(_Named):
    """The body of our six, by OpenIM's names (pkg/callbackstruct/message.go and user.go)."""

    user_id: Annotated[str, Field(alias="userID", min_length=1, max_length=ID_MAX), _NO_NUL]
    seq: int = Field(ge=0, le=SEQ_MAX)
    conn_id: Annotated[str, Field(alias="connID", max_length=ID_MAX), _NO_NUL] = ""
    platform_id: int = Field(0, alias="platformID", ge=0, le=255)
    platform: str = ""
    # None stands for "absent", which the body itself cannot say: null is no string.
    operation_id: Annotated[str, Field(alias="operationID"), _NO_NUL] = None  # type: ignore[assignment]


def read_body(target: Target, operation_id: str | None, body: bytes, received_at: int) -> Event:
    """Reads the body of a request whose URL said `target`.

    operation_id: the header's value, None where there was none. received_at: Unix milliseconds.
    Raises Refused (400) and Foreign.
    """
    if target.command is None:
        check_command(_parse(_Named, body).command)
    fields = _parse(_Body, body)
    if target.command is not None and fields.command != target.command:
        raise Refused(400, "URL and body name different commands", "callbackCommand: must be the URL's")
    if not operation_id and fields.operation_id is not None:
        operation_id = fields.operation_id
    if operation_id is None:  # an empty header is not absent: some gateways send no more than that
        raise Refused(400, "there is no operationID", "operationID: must be in the header or in the body")
    if not _is_text(operation_id):
        raise Refused(400, "a field is wrong", "operationID: must be UTF-8 without NUL")
    return Event(
        fields.user_id,
        fields.command,  # type: ignore[arg-type]  # one of the six, as checked above
        fields.seq,
        fields.conn_id,
        fields.platform_id,
        fields.platform,
        operation_id,
        received_at,
    )


def _is_text(header: str) -> bool:
    """False for NUL, and for what aiohttp makes of bytes that are not UTF-8: lone surrogates."""
    return "\0" not in header and (header.isascii() or not re.search("[\ud800-\udfff]", header))


def _parse(model: type[_Model], body: bytes) -> _Model:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        if first["type"] == "json_invalid":
            raise Refused(400, "the body is not JSON", reason) from None
        raise Refused(400, "a field is wrong", f"{field or 'body'}: {reason}") from None


def accepted(target: Target) -> bytes:
    """The answer to a callback that was accepted."""
    return b'{"actionCode":0,"errCode":0,"errMsg":"","errDlt":"","nextCode":%s}' % target.next_code


def refused(refusal: Refused) -> bytes:
    """The answer to one that was not."""
    answer = {
        "actionCode": 1,
        "errCode": refusal.status,
        "errMsg": refusal.message,
        "errDlt": refusal.detail,
        "nextCode": 0,
    }
    return to_json(answer)


def not_ours(foreign: Foreign) -> bytes:
    """The answer to a foreign callback: all codes 0, so that OpenIM goes on as if there were no callback."""
    answer = {
        "actionCode": 0,
        "errCode": 0,
        "errMsg": f"{foreign.command} is not handled here",
        "errDlt": "",
        "nextCode": 0,
    }
    return to_json(answer)
