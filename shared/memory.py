"""What a user's hash remembers: its private fields as values. Their form is that of worker/store/lua/hash.lua.

Pure. `tests/integration/test_why_agrees.py` holds the two together.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from shared.events import Kind

Scope = Literal["connection", "platform", "user"]
EventKind = Literal["online", "offline", "kick_off"]

_SEQ = r"(-|\d{1,19})"
_RECORD = re.compile(rf"{_SEQ} {_SEQ} (\d{{1,3}})(?: (x|\d+))?")
_SUM = re.compile(rf"{_SEQ} {_SEQ}(?: (\d{{1,19}}))?")
_BATCH = re.compile(r"(\d{1,19}) (\S+) (.*)", re.DOTALL)
_NAMED = re.compile(r"([nfk])(\d{1,3})\.(?:x(\d{1,5})|\w*)(?:@(\d{1,19}))?")
_KINDS: dict[str, EventKind] = {"n": "online", "f": "offline", "k": "kick_off"}
_EXPIRED = "x"


@dataclass(frozen=True, slots=True)
class Record:
    """One scope: a connection, a platform, or the user as a whole.

    name: the connection's id or the platform's, "" for the user. platform_id: the one that a connection is on, 0 for
    none. online_seq, offline_seq: the highest of its events, None if it had none. lease_began_ms: Unix milliseconds,
    None if it has no lease. has_expired: its lease ran out.
    """

    scope: Scope
    name: str
    platform_id: int
    online_seq: int | None = None
    offline_seq: int | None = None
    lease_began_ms: int | None = None
    has_expired: bool = False

    @property
    def seqs(self) -> dict[Kind, int]:
        """Those that it has."""
        found: dict[Kind, int | None] = {"online": self.online_seq, "offline": self.offline_seq}
        return {kind: seq for kind, seq in found.items() if seq is not None}


@dataclass(frozen=True, slots=True)
class Named:
    """One event of a batch."""

    kind: EventKind
    platform_id: int
    seq: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Events of platforms that are read together. operation_id: may be empty."""

    operation_id: str
    events: tuple[Named, ...]

    @property
    def seq(self) -> int:
        """The highest seq of its events, which decides the order of batches."""
        return max(event.seq for event in self.events)


@dataclass(frozen=True, slots=True)
class Sum:
    """What older batches have said of a platform, as a Record has it.

    mixed_seq: the highest seq of one of them that named the platform both online and offline, and said offline.
    """

    platform_id: int
    online_seq: int | None = None
    offline_seq: int | None = None
    mixed_seq: int | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """All that a hash holds.

    fields: the public ones. batches: in their order. floor_seq: the highest seq of a closed connection that was
    forgotten, None if none was. unsent: changes that are not on the feed yet. unreadable: fields that make no sense.
    """

    fields: dict[str, str]
    records: tuple[Record, ...] = ()
    batches: tuple[Batch, ...] = ()
    sums: tuple[Sum, ...] = ()
    floor_seq: int | None = None
    unsent: int = 0
    unreadable: tuple[str, ...] = ()

    def record(self, scope: Scope, name: str = "") -> Record | None:
        return next((each for each in self.records if (each.scope, each.name) == (scope, name)), None)

    def offline_seq(self, scope: Scope, name: str = "") -> int | None:
        """The highest seq of an offline event of that scope."""
        record = self.record(scope, name)
        return record.offline_seq if record else None


def read(fields: Mapping[bytes, bytes]) -> Memory:
    """Reads the fields of a hash, of any release."""
    text = {_text(name): _text(value) for name, value in fields.items()}
    records = {name: _record(name, value) for name, value in text.items() if name == "u" or name[:2] in ("c:", "p:")}
    batches = {name: _batch(value) for name, value in text.items() if name.startswith("b:")}
    sums = {name: _sum(name, value) for name, value in text.items() if name.startswith("s:")}
    private: dict[str, Any] = {**records, **batches, **sums}
    unreadable = [name for name, value in private.items() if value is None]
    public = {name: value for name, value in text.items() if name not in private and ":" not in name}
    floor, outbox = public.pop("floor", ""), public.pop("outbox", "")
    if floor and not floor.isdecimal():
        unreadable.append("floor")
    return Memory(
        public,
        tuple(each for each in records.values() if each),
        tuple(sorted(filter(None, batches.values()), key=lambda batch: (batch.seq, batch.operation_id))),
        tuple(each for each in sums.values() if each),
        int(floor) if floor.isdecimal() else None,
        len(outbox.splitlines()),
        tuple(unreadable),
    )


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


def _record(name: str, value: str) -> Record | None:
    match = _RECORD.fullmatch(value)
    if not match:
        return None
    online, offline, platform, lease = match.groups()
    scope: Scope = "user" if name == "u" else "connection" if name.startswith("c:") else "platform"
    has_expired = lease == _EXPIRED
    began = int(lease) if lease and not has_expired else None
    return Record(scope, name[2:], int(platform), _seq(online), _seq(offline), began, has_expired)


def _batch(value: str) -> Batch | None:
    match = _BATCH.fullmatch(value)
    named = [_NAMED.fullmatch(each) for each in match[2].split(",")] if match else []
    if not match or not all(named):
        return None
    events: list[Named] = []
    for each in filter(None, named):
        events += [Named(_KINDS[each[1]], int(each[2]), int(each[4] or match[1]))] * int(each[3] or 1)
    return Batch(match[3], tuple(events))


def _sum(name: str, value: str) -> Sum | None:
    match = _SUM.fullmatch(value)
    if not match or not name[2:].isdecimal():
        return None
    online, offline, mixed = match.groups()
    return Sum(int(name[2:]), _seq(online), _seq(offline), _seq(mixed or "-"))


def _seq(text: str) -> int | None:
    return None if text == "-" else int(text)
