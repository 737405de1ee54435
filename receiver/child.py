"""One of several receiver processes: what it inherits from its parent and tells it (`receiver/processes.py`).

Everything is inherited as open sockets, so there is no directory that somebody could clean away.
"""

import asyncio
import json
import os
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from receiver.admin import Pages
from receiver.stopping import Stop

_VARIABLE = "RECEIVER_CHILD"


@dataclass(frozen=True)
class Inherited:
    """control: to the parent. own, siblings: as `Listener` takes them."""

    control: socket.socket
    own: list[socket.socket]
    siblings: list[socket.socket]

    @property
    def numbers(self) -> list[int]:
        """The descriptors that the child must get."""
        return [each.fileno() for each in (self.control, *self.own, *self.siblings)]

    def as_environment(self) -> dict[str, str]:
        named = {"control": self.control.fileno(), "own": _numbers(self.own), "siblings": _numbers(self.siblings)}
        return {_VARIABLE: json.dumps(named)}


def _numbers(sockets: Iterable[socket.socket]) -> list[int]:
    return [each.fileno() for each in sockets]


def inherited(environment: Mapping[str, str] = os.environ) -> Inherited | None:
    """What this process has inherited; None if it is not a child."""
    if _VARIABLE not in environment:
        return None
    named = json.loads(environment[_VARIABLE])
    own, siblings = ([socket.socket(fileno=number) for number in named[name]] for name in ("own", "siblings"))
    return Inherited(socket.socket(fileno=named["control"]), own, siblings)


async def answer_parent(control: socket.socket, pages: Pages, stop: Stop) -> None:
    """Answers each byte from the parent with a line: all that this process says about itself.

    Stops the process when its parent is gone.
    """
    with suppress(OSError):
        reader, writer = await asyncio.open_unix_connection(sock=control)
        while await reader.read(1):
            readiness, state = await pages.readiness(), await pages.state()
            said = {"readiness": readiness.as_json(), "state": state.as_json()}
            writer.write(json.dumps(said).encode() + b"\n")
            await writer.drain()
    stop.told.set()
