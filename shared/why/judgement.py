"""The rules of presence (docs/redis-keys.md), applied to what is remembered of one user: what is online, and why.

Pure. The store has the same rules in worker/store/lua; `tests/integration/test_why_agrees.py` compares the two.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from shared.memory import Batch, Memory, Named, Record, Scope

#: What closes a session: an offline event of that scope, the end of its lease, or that it was never opened.
Cover = Literal["connection", "platform", "user", "lease", "never"]

#: By which rule a batch says that a platform is online or offline. For that platform it has
#: - `online`, `offline`: only such events
#: - `kick_offs`: both, and all offline events are kick-offs: online
#: - `more_online`: more online events: online
#: - `kept`: as many of each; the platform was online before, and nothing else of the user changes: online
#: - `fewer_online`: more offline events: offline
#: - `was_offline`, `others_change`: as many of each, but the conditions of `kept` do not hold: offline
Rule = Literal["online", "offline", "kick_offs", "more_online", "kept", "fewer_online", "was_offline", "others_change"]
_ONLINE: tuple[Rule, ...] = ("online", "kick_offs", "more_online", "kept")


@dataclass(frozen=True, slots=True)
class Session:
    """A scope, judged. cover: what closes it, None if it is online. cover_seq: the seq of that event, if it is one."""

    record: Record
    cover: Cover | None = None
    cover_seq: int | None = None

    @property
    def is_online(self) -> bool:
        return self.cover is None


@dataclass(frozen=True, slots=True)
class Reading:
    """What a batch says of one platform. kick_offs: how many of the offline events are kick-offs."""

    platform_id: int
    online: int
    offline: int
    kick_offs: int
    seq: int
    rule: Rule

    @property
    def is_online(self) -> bool:
        return self.rule in _ONLINE

    @property
    def is_mixed(self) -> bool:
        return bool(self.online and self.offline)


@dataclass(frozen=True, slots=True)
class ReadBatch:
    """A batch, and what it says."""

    batch: Batch
    readings: tuple[Reading, ...]


def sessions(memory: Memory) -> list[Session]:
    """All scopes, those online first, the newest first."""
    judged = [_judge(memory, record) for record in memory.records]
    return sorted(judged, key=lambda each: (not each.is_online, -_newest(each.record), each.record.name))


def platforms(memory: Memory) -> list[int]:
    """Ids of the platforms that have an online session, ascending."""
    return sorted({each.record.platform_id for each in sessions(memory) if each.is_online} - {0})


def covers(memory: Memory, scope: Scope, name: str, platform_id: int) -> list[tuple[Cover, int]]:
    """The offline events that cover a session of that scope, the one with the highest seq first."""
    found: list[tuple[Cover, int | None]] = [
        (scope, memory.offline_seq(scope, name)),
        ("platform", memory.offline_seq("platform", str(platform_id)) if platform_id else None),
        ("user", memory.offline_seq("user")),
    ]
    known = {cover: seq for cover, seq in reversed(found) if seq is not None}
    return sorted(known.items(), key=lambda each: -each[1])


def _judge(memory: Memory, record: Record) -> Session:
    if record.online_seq is None:
        return Session(record, "never")
    for cover, seq in covers(memory, record.scope, record.name, record.platform_id):
        if seq > record.online_seq:
            return Session(record, cover, seq)
    return Session(record, "lease") if record.has_expired else Session(record)


def _newest(record: Record) -> int:
    return max(record.online_seq or 0, record.offline_seq or 0)


def read_batches(memory: Memory) -> list[ReadBatch]:
    """The batches in their order, each with what it says given all before it."""
    marks, found = _before(memory), []
    for batch in memory.batches:
        readings = tuple(_read(batch, platform, marks) for platform in _platforms(batch.events))
        found.append(ReadBatch(batch, readings))
        for each in readings:
            marks.say(each)
    return found


def settled(memory: Memory) -> dict[int, tuple[int | None, int | None]]:
    """The highest online and offline seq of each platform, by what its batches say; as its Record should have them."""
    marks = _before(memory)
    for batch in read_batches(memory):
        for each in batch.readings:
            marks.say(each)
    platform_ids = sorted({*marks.online, *marks.offline})
    return {each: (marks.online.get(each), marks.offline.get(each)) for each in platform_ids}


class _Marks:
    """The highest online and offline seq of each platform so far."""

    def __init__(self, user_offline_seq: int | None) -> None:
        self.online: dict[int, int] = {}
        self.offline: dict[int, int] = {}
        self._user = -1 if user_offline_seq is None else user_offline_seq

    def note(self, is_online: bool, platform_id: int, seq: int | None) -> None:
        if seq is not None:
            marks = self.online if is_online else self.offline
            marks[platform_id] = max(seq, marks.get(platform_id, seq))

    def say(self, reading: Reading) -> None:
        self.note(reading.is_online, reading.platform_id, reading.seq)

    def is_online(self, platform_id: int) -> bool:
        """Whether the platform is online, whatever its lease."""
        return self.online.get(platform_id, -1) >= max(0, self.offline.get(platform_id, -1), self._user)


def _before(memory: Memory) -> _Marks:
    """The state before these batches: the sums of older ones, and what a release without batches wrote beside them."""
    marks = _Marks(memory.offline_seq("user"))
    for each in memory.sums:
        marks.note(True, each.platform_id, each.online_seq)
        marks.note(False, each.platform_id, each.offline_seq)
    in_batches = {(event.platform_id, event.seq) for batch in memory.batches for event in batch.events}
    for record in memory.records:
        if record.scope == "platform":
            for is_online, seq in ((True, record.online_seq), (False, record.offline_seq)):
                if (record.platform_id, seq) not in in_batches:
                    marks.note(is_online, record.platform_id, seq)
    return marks


def _platforms(events: Iterable[Named]) -> list[int]:
    return list(dict.fromkeys(event.platform_id for event in events))


def _read(batch: Batch, platform_id: int, before: _Marks) -> Reading:
    mine = [event for event in batch.events if event.platform_id == platform_id]
    online, kick_offs = (sum(event.kind == kind for event in mine) for kind in ("online", "kick_off"))
    offline = len(mine) - online
    rule = _rule(batch, platform_id, (online, offline, kick_offs), before)
    return Reading(platform_id, online, offline, kick_offs, max(event.seq for event in mine), rule)


def _rule(batch: Batch, platform_id: int, counts: tuple[int, int, int], before: _Marks) -> Rule:
    online, offline, kick_offs = counts
    if not (online and offline):
        return "online" if online else "offline"
    if kick_offs == offline:
        return "kick_offs"
    if online != offline:
        return "more_online" if online > offline else "fewer_online"
    if not before.is_online(platform_id):
        return "was_offline"
    others = [event for event in batch.events if event.platform_id != platform_id]
    if all(event.kind == "online" and before.is_online(event.platform_id) for event in others):
        return "kept"
    return "others_change"
