"""What we hold of one user, as far as a comparison needs it. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from shared import memory
from shared.gateways.batches import batch_of

#: Lower than every seq.
NEVER = -1


class Scope(NamedTuple):
    """What a session is: a connection, else a platform, else the user as a whole."""

    platform_id: int = 0
    conn_id: str = ""


class Mark(NamedTuple):
    """The highest seqs of a scope's online and offline events. is_expired: its lease ran out."""

    on: int
    off: int
    is_expired: bool


class Batch(NamedTuple):
    """What an event of OpenIM 3.8.2 or later names: the gateway's pid, the number of its batch there, and its seq."""

    pid: int
    number: int
    seq: int


@dataclass(frozen=True, slots=True)
class Ours:
    """heard_at_ms: when the last event that changed anything was received; 0 if there was none.

    marks: one for every scope that is remembered. batches: for each platform, the batch of its newest online event, if
    that is remembered and names a gateway. floor: events of unknown connections at or below this seq are stale.
    """

    user_id: str
    heard_at_ms: int = 0
    marks: Mapping[Scope, Mark] = field(default_factory=dict)
    batches: Mapping[int, Batch] = field(default_factory=dict)
    floor: int = NEVER

    def sessions(self) -> list[Scope]:
        """The scopes that are online."""
        return [scope for scope, mark in self.marks.items() if self._is_online(scope, mark)]

    def platforms(self) -> set[int]:
        """The platforms of these scopes; 0 stands for one that is not known."""
        return {scope.platform_id for scope in self.sessions()}

    def _is_online(self, scope: Scope, mark: Mark) -> bool:
        return not mark.is_expired and mark.on > NEVER and mark.on >= self.covering(scope)

    def covering(self, scope: Scope) -> int:
        """The highest seq of an offline event that covers the scope; NEVER if there is none."""
        marks = [self._mark(scope), self.marks.get(Scope())]
        if scope.platform_id:
            marks.append(self.marks.get(Scope(scope.platform_id)))
        return max((mark.off for mark in marks if mark), default=NEVER)

    def _mark(self, scope: Scope) -> Mark | None:
        """The mark of a scope. A connection is found by its id, whatever platform it is said to be on."""
        if not scope.conn_id:
            return self.marks.get(scope)
        return next((mark for each, mark in self.marks.items() if each.conn_id == scope.conn_id), None)

    def seq_that_opens(self, scope: Scope) -> int:
        """The lowest seq with which an online event opens a scope that is not online; NEVER if any seq does."""
        mark = self._mark(scope)
        if mark is None:
            unknown = self.floor + 1 if scope.conn_id and self.floor > NEVER else NEVER
            return max(self.covering(scope), unknown)
        return max(self.covering(scope), mark.on + 1 if mark.is_expired else NEVER)


def read(user_id: str, fields: Mapping[bytes, bytes]) -> Ours:
    """Raises ValueError if the hash, or a field of it, is not ours."""
    if not fields:
        return Ours(user_id)
    held = memory.read(fields)
    if held.unreadable:
        raise ValueError(f"{held.unreadable[0]} is not one of our fields")
    marks = {
        _scope(each): Mark(_seq(each.online_seq), _seq(each.offline_seq), each.has_expired) for each in held.records
    }
    newest: dict[int, tuple[int, Batch | None]] = {}
    for batch in held.batches:
        named = batch_of(batch.operation_id)
        for event in batch.events:
            if event.kind == "online" and event.seq > newest.get(event.platform_id, (NEVER, None))[0]:
                newest[event.platform_id] = event.seq, Batch(*named, event.seq) if named else None
    batches = {platform_id: batch for platform_id, (_, batch) in newest.items() if batch}
    return Ours(user_id, int(held.fields.get("updated_at", 0)), marks, batches, _seq(held.floor_seq))


def _scope(record: memory.Record) -> Scope:
    return Scope(record.platform_id, record.name if record.scope == "connection" else "")


def _seq(seq: int | None) -> int:
    return NEVER if seq is None else seq
