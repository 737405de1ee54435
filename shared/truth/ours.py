"""What we hold of one user, read from her hash with its private fields. Pure; worker/store/lua/hash.lua writes them."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from shared.gateways.batches import batch_of

_MARK = re.compile(r"(\d+|-) (\d+|-) (\d+)(?: (\S+))?")
_EVENT = re.compile(r"([nfk])(\d+)\.\w*(?:@(\d+))?")
_EXPIRED = "x"
#: Lower than every seq.
NEVER = -1


class Scope(NamedTuple):
    """What a session is: a connection, else a platform, else the user as a whole."""

    platform_id: int = 0
    conn_id: str = ""


class Mark(NamedTuple):
    """The highest seqs of an online and of an offline event. is_expired: its lease ran out."""

    on: int
    off: int
    is_expired: bool


class Batch(NamedTuple):
    """A callback of 3.8.2 or later: the gateway's pid, which batch of that process it was in, and its seq."""

    pid: int
    number: int
    seq: int


@dataclass(frozen=True, slots=True)
class Ours:
    """heard_at_ms: when the last event that changed anything was received; 0 where we never heard of her.

    marks: of every scope that is remembered. batches: of each platform, the one that named it online last, where that
    is remembered and was a gateway's. floor: events of unknown connections at or below this seq are stale.
    """

    user_id: str
    heard_at_ms: int = 0
    marks: Mapping[Scope, Mark] = field(default_factory=dict)
    batches: Mapping[int, Batch] = field(default_factory=dict)
    floor: int = NEVER

    def sessions(self) -> list[Scope]:
        """Those that are online."""
        return [scope for scope, mark in self.marks.items() if self._is_online(scope, mark)]

    def platforms(self) -> set[int]:
        """Of those; 0 stands for one that is not known."""
        return {scope.platform_id for scope in self.sessions()}

    def _is_online(self, scope: Scope, mark: Mark) -> bool:
        return not mark.is_expired and mark.on > NEVER and mark.on >= self.covering(scope)

    def covering(self, scope: Scope) -> int:
        """The highest seq of an offline event that covers the scope; NEVER where there is none."""
        marks = [self._mark(scope), self.marks.get(Scope())]
        if scope.platform_id:
            marks.append(self.marks.get(Scope(scope.platform_id)))
        return max((mark.off for mark in marks if mark), default=NEVER)

    def _mark(self, scope: Scope) -> Mark | None:
        """A connection is the same whatever platform it is said to be on."""
        if not scope.conn_id:
            return self.marks.get(scope)
        return next((mark for each, mark in self.marks.items() if each.conn_id == scope.conn_id), None)

    def seq_that_opens(self, scope: Scope) -> int:
        """The lowest seq with which an online event opens a scope that is not online; NEVER where any does."""
        mark = self._mark(scope)
        if mark is None:
            unknown = self.floor + 1 if scope.conn_id and self.floor > NEVER else NEVER
            return max(self.covering(scope), unknown)
        return max(self.covering(scope), mark.on + 1 if mark.is_expired else NEVER)


def read(user_id: str, fields: Mapping[bytes, bytes]) -> Ours:
    """Raises ValueError where the hash is none of ours."""
    text = {name.decode(): value.decode() for name, value in fields.items()}
    if not text:
        return Ours(user_id)
    marks = dict(_mark(name, value) for name, value in text.items() if name[:2] in ("c:", "p:") or name == "u")
    newest: dict[int, tuple[int, Batch | None]] = {}
    for name in ("b:0", "b:1", "b:2", "b:3"):
        for platform_id, seq, batch in _online_in(text.get(name, "")):
            if platform_id not in newest or seq > newest[platform_id][0]:
                newest[platform_id] = seq, batch
    batches = {platform_id: batch for platform_id, (_, batch) in newest.items() if batch}
    floor = int(text["floor"]) if text.get("floor", "-") != "-" else NEVER
    return Ours(user_id, int(text.get("updated_at", 0)), marks, batches, floor)


def _mark(name: str, value: str) -> tuple[Scope, Mark]:
    found = _MARK.fullmatch(value)
    if not found:
        raise ValueError(f"{name} is none of our fields")
    on, off, platform_id, lease = found.groups()
    scope = Scope() if name == "u" else Scope(int(platform_id), name[2:] if name[0] == "c" else "")
    return scope, Mark(_seq(on), _seq(off), lease == _EXPIRED)


def _seq(text: str) -> int:
    return NEVER if text == "-" else int(text)


def _online_in(text: str) -> Iterator[tuple[int, int, Batch | None]]:
    """The platforms that a remembered batch names online, and with which seq."""
    first, _, rest = text.partition(" ")
    events, _, operation_id = rest.partition(" ")
    named = batch_of(operation_id)
    for kind, platform_id, own in _EVENT.findall(events):
        if kind == "n":
            seq = int(own or first)
            yield int(platform_id), seq, Batch(*named, seq) if named else None
