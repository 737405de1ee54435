"""What OpenIM sends, for those that play OpenIM: `presence send`, the tests and the benchmarks."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from shared.logs.text import safe
from shared.platforms import PLATFORMS

Step = Literal["Online", "Offline", "KickOff"]


@dataclass(frozen=True, slots=True)
class Shape:
    """One of the six forms of the callback; docs/openim-versions.md has the table.

    url: what follows the configured URL, with `{command}` to fill in. command: the callback's name, with `{step}` to
    fill in. conn_id to body_operation_id: whether the callback has them.
    """

    url: str
    command: str
    conn_id: bool
    platform: bool
    header: bool
    body_operation_id: bool
    keep_alive: bool = True


_OLD = "callbackUser{step}Command"
_NEW = "callbackAfterUser{step}Command"

SHAPES = {
    "document": Shape("?command={command}&contenttype=json", _OLD, True, False, True, False),
    "v2": Shape("", _OLD, False, True, False, True, keep_alive=False),
    "v3.0": Shape("?command={command}", _OLD, True, True, True, True),
    "v3.4": Shape("/{command}", _OLD, True, True, True, True),
    "v3.7": Shape("/{command}", _NEW, True, True, True, True),
    "v3.8": Shape("/{command}", _NEW, False, True, True, True),
}


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP POST."""

    url: str
    headers: dict[str, str]
    body: bytes


def request(
    shape: str,
    base_url: str,
    step: Step,
    user_id: str,
    seq: int,
    platform_id: int = 1,
    connection: int = 0,
    operation_id: str = "",
) -> Request:
    """The callback as an OpenIM of that shape would send it.

    shape: a key of SHAPES. seq: Unix milliseconds. connection: which of the user's connections it is about, if the
    shape names connections. operation_id: if empty, the callback gets its own.
    """
    form = SHAPES[shape]
    command = form.command.format(step=step)
    operation_id = operation_id or f"{seq}-{step}-{safe(user_id)}"  # goes into a header
    headers = {"Content-Type": "application/json; charset=utf-8"}
    body: dict[str, Any] = {"userID": user_id, "callbackCommand": command, "seq": seq}
    if form.header:
        headers["operationID"] = operation_id
    if form.body_operation_id:
        body["operationID"] = operation_id
    if form.platform:
        body |= {"platformID": platform_id, "platform": PLATFORMS.get(platform_id, "")}
    if form.conn_id and step != "KickOff":
        # OpenIM's are MD5 sums of the client's address and the time.
        body["connID"] = hashlib.md5(f"{user_id}-{connection}".encode(), usedforsecurity=False).hexdigest()
    elif shape == "v3.8":
        body["connID"] = ""
    if step == "Online":
        body |= {"token": "a-token"} if shape == "v2" else {"isAppBackground": False}
    if not form.keep_alive:
        headers["Connection"] = "close"
    return Request(base_url + form.url.format(command=command), headers, json.dumps(body).encode())
