"""Presence in plain Python, written straight from the rules: a function of a set of events. Slow, and meant to be read.

`sessions` and `platforms` know neither leases nor bounds. `Memory` adds that only four batches of a user are remembered
one by one. `Leased` adds leases that run out and users who are forgotten. `Bounded` has the bounds on connections, 32
closed ones and 256 sessions a user, and neither batches nor leases.

What the rules leave open is decided here:
- A batch begins with its lowest seq. If events with one operationID span 60 s or more, the batch takes those less than
  60 s above its lowest seq, and the rest makes the next batch.
- "Online before the batch" considers earlier batches, and offline events of the whole user whatever their seq. It
  considers neither connections nor leases.
- Events that come together are remembered together; only then are batches beyond four summed up, oldest first. So a
  batch that is delivered again as a whole is read as a whole.
- A batch that was summed up may have named a platform both online and offline, and said offline. An online event that
  is older than the batches remembered, and has exactly the seq of such a batch, was counted in it. Otherwise one
  callback delivered twice would open for ever what its batch closed. An event without an operationID is in no batch.
- A lease begins when the online event that raised its session's seq was received. If an offline event raises the seq,
  as in batches that end with one, the lease goes on.
"""

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from shared.events import Event

Scope = tuple[str, Any]
Key = tuple[int, str]

BATCH_MS = 60_000
REMEMBERED = 4
NEVER = -1
EXPIRED = -1


@dataclass(frozen=True)
class Mark:
    """What is known of a platform: its highest online and offline seq.

    mixed: the highest seq of a batch that named the platform both online and offline, and said offline.
    """

    on: int = NEVER
    off: int = NEVER
    mixed: int = NEVER

    def and_also(self, said: "Mark") -> "Mark":
        return Mark(max(self.on, said.on), max(self.off, said.off), max(self.mixed, said.mixed))


class Opening(NamedTuple):
    """What opened a session."""

    seq: int
    platform_id: int


def sessions(events: Iterable[Event]) -> set[Scope]:
    """The sessions that are online, by scope, of one user's events."""
    return set(Memory(events).openings())


def platforms(events: Iterable[Event]) -> list[int]:
    """The platforms that have an online session, of one user's events."""
    return Memory(events).platforms()


def newest_seq(events: Iterable[Event]) -> int:
    return max(event.seq for event in events)


def scope_of(event: Event) -> Scope:
    if event.conn_id:
        return ("connection", event.conn_id)
    if event.platform_id:
        return ("platform", event.platform_id)
    return ("user", None)


class Memory:
    """What is remembered of one user. remembered: how many batches are kept one by one; None: all."""

    def __init__(self, events: Iterable[Event] = (), remembered: int | None = None) -> None:
        self._remembered = remembered
        self._others: list[Event] = []
        self._batched: list[Event] = []
        self._sums: dict[int, Mark] = {}
        self.add(events)

    def add(self, events: Iterable[Event]) -> None:
        """Takes events that come together, in the order in which they came."""
        before = list(self._batched)
        known = {identity(event) for event in before}
        for event in events:
            if scope_of(event)[0] != "platform":
                self._others.append(event)
            elif identity(event) not in known:
                known.add(identity(event))
                self._batched.append(event)
        while self._remembered is not None and len(found := batches(self._batched)) > self._remembered:
            self._sum_up(found[0], came_late=not any(event in before for event in found[0]))

    @property
    def has_summed_up(self) -> bool:
        return bool(self._sums)

    def _sum_up(self, oldest: list[Event], came_late: bool) -> None:
        for platform, said in self._read(oldest, self._sums).items():
            mark = self._sums.get(platform, Mark())
            if not (came_late and oldest[0].operation_id and said.on == mark.mixed > NEVER):
                self._sums[platform] = mark.and_also(said)
        self._batched = [event for event in self._batched if event not in oldest]

    def marks(self) -> dict[int, Mark]:
        """What all batches together say about each platform."""
        marks = dict(self._sums)
        for batch in batches(self._batched):
            for platform, said in self._read(batch, marks).items():
                marks[platform] = marks.get(platform, Mark()).and_also(said)
        return marks

    def _read(self, batch: list[Event], before: dict[int, Mark]) -> dict[int, Mark]:
        online = {platform for platform, mark in before.items() if mark.on >= max(mark.off, self._offline_seq())}
        return read(batch, online)

    def _offline_seq(self, *scopes: Scope) -> int:
        """The highest seq of an offline event of the whole user, or of these scopes."""
        covering = {("user", None), *scopes}
        return max((e.seq for e in self._others if e.kind == "offline" and scope_of(e) in covering), default=NEVER)

    def openings(self) -> dict[Scope, Opening]:
        """The sessions that are online, by scope, each with what opened it."""
        marks = self.marks()
        return {scope: opening for scope, opening in self.heard_of().items() if self._is_open(scope, opening, marks)}

    def heard_of(self) -> dict[Scope, Opening]:
        """The sessions that are or were online, each with its highest online seq."""
        found = {("platform", platform): Opening(mark.on, platform) for platform, mark in self.marks().items()}
        for event in self._others:
            if event.kind == "online":  # the one with the highest seq says which platform a connection is on
                opening = Opening(event.seq, event.platform_id)
                found[scope_of(event)] = max(opening, found.get(scope_of(event), opening))
        return found

    def _is_open(self, scope: Scope, opening: Opening, marks: dict[int, Mark]) -> bool:
        of_platform = marks.get(opening.platform_id, Mark()).off
        return opening.seq > NEVER and opening.seq >= max(of_platform, self._offline_seq(scope))

    def platforms(self) -> list[int]:
        return sorted({opening.platform_id for opening in self.openings().values()} - {0})


def identity(event: Event) -> tuple[object, ...]:
    """What all deliveries of one callback have in common. Receivers of older releases gave events no id."""
    same = is_kick_off(event), event.kind, event.platform_id, event.seq
    return (*same, event.operation_id, event.id or event.received_at) if event.operation_id else same


def is_kick_off(event: Event) -> bool:
    return "KickOff" in event.command


def key(batch: list[Event]) -> Key:
    """The order of batches."""
    return newest_seq(batch), batch[0].operation_id


def batches(events: list[Event]) -> list[list[Event]]:
    """One user's events of platforms, batch by batch in their order; in each batch, in the order in which they came."""
    found: list[list[Event]] = [[event] for event in events if not event.operation_id]
    named = sorted((event for event in events if event.operation_id), key=lambda event: event.operation_id)
    for _, group in groupby(named, key=lambda event: event.operation_id):
        left = list(group)
        while left:
            lowest = min(event.seq for event in left)
            found.append([event for event in left if event.seq < lowest + BATCH_MS])
            left = [event for event in left if event.seq >= lowest + BATCH_MS]
    return sorted(found, key=key)


def read(batch: list[Event], online: set[int]) -> dict[int, Mark]:
    """What a batch says about each platform that it names. online: the platforms that were online before it."""
    named: dict[int, list[Event]] = {}
    for event in batch:
        named.setdefault(event.platform_id, []).append(event)

    def names_online_only(platform: int) -> bool:
        return all(event.kind == "online" for event in named[platform])

    def is_online(platform: int) -> bool:
        ons = [event for event in named[platform] if event.kind == "online"]
        offs = [event for event in named[platform] if event.kind == "offline"]
        if not ons or not offs:
            return bool(ons)
        if len(ons) > len(offs) or all(map(is_kick_off, offs)):
            return True
        others = set(named) - {platform}
        nothing_else = all(names_online_only(other) and other in online for other in others)
        return len(ons) == len(offs) and platform in online and nothing_else

    said = {}
    for platform, events in named.items():
        seq = newest_seq(events)
        if is_online(platform):
            said[platform] = Mark(on=seq)
        else:
            said[platform] = Mark(off=seq, mixed=NEVER if all(e.kind == "offline" for e in events) else seq)
    return said


class Leased:
    """Users whose sessions must be renewed. lease: milliseconds. changes: (user, previous, status, command)."""

    def __init__(self, lease: int) -> None:
        self._lease = lease
        self._memory: dict[str, Memory] = {}
        self._began: dict[str, dict[Scope, int]] = {}
        self._status: dict[str, str] = {}
        self.changes: list[tuple[str, str, str, str]] = []

    @property
    def status(self) -> dict[str, str]:
        return self._status

    def sessions(self, user: str) -> dict[Scope, Opening]:
        openings = self._memory[user].openings() if user in self._memory else {}
        return {scope: opening for scope, opening in openings.items() if self._began[user][scope] != EXPIRED}

    def platforms(self, user: str) -> list[int]:
        return sorted({opening.platform_id for opening in self.sessions(user).values()} - {0})

    def has_summed_up(self, users: Iterable[str]) -> bool:
        """Whether a second delivery of what the user sent may count again."""
        return any(self._memory[user].has_summed_up for user in users)

    def lease_ends(self, user: str) -> int | None:
        """The end of the earliest lease."""
        return min((self._began[user][scope] + self._lease for scope in self.sessions(user)), default=None)

    def apply(self, events: Iterable[Event]) -> None:
        """Applies events of one user that come together as one step. Its change names the last event that made it."""
        by_user: dict[str, list[Event]] = {}
        for event in events:
            by_user.setdefault(event.user_id, []).append(event)
        for user, of_user in by_user.items():
            command, status = of_user[0].command, self._status.get(user, "")
            remembered = self._memory.get(user, Memory(remembered=REMEMBERED))
            seen = remembered
            for number, event in enumerate(of_user, 1):
                before, seen = seen, deepcopy(remembered)
                seen.add(of_user[:number])
                self._renew(event, before, seen)
                self._memory[user] = seen
                was, status = status, self._status_by_sessions(user)
                command = event.command if status != was else command
            self._note(user, command)

    def _renew(self, event: Event, before: Memory, after: Memory) -> None:
        began, seqs = self._began.setdefault(event.user_id, {}), before.heard_of()
        for scope, opening in after.heard_of().items():
            is_raised = opening.seq > (seqs[scope].seq if scope in seqs else NEVER)
            if is_raised and (event.kind == "online" or began.get(scope, EXPIRED) == EXPIRED):
                began[scope] = event.received_at

    def sweep(self, until: int) -> None:
        for user in sorted(self._memory, key=lambda user: (self.lease_ends(user) or 0, user)):
            began = self._began[user]
            began |= {scope: EXPIRED for scope in self.sessions(user) if began[scope] + self._lease <= until}
            self._note(user, "lease_expired")

    def forget(self, user: str) -> None:
        for of_users in (self._memory, self._began, self._status):
            of_users.pop(user, None)  # type: ignore[attr-defined]

    def _status_by_sessions(self, user: str) -> str:
        return "online" if self.sessions(user) else "offline"

    def _note(self, user: str, command: str) -> None:
        previous, status = self._status.get(user, ""), self._status_by_sessions(user)
        if status != previous:
            self._status[user] = status
            self.changes.append((user, previous, status, command))


@dataclass
class Record:
    """What is remembered of one scope. platform: that of the online event with the highest seq."""

    on: int = NEVER
    off: int = NEVER
    platform: int = 0


class Bounded:
    """One user, with limits on remembered closed connections and online sessions; without batches and leases."""

    def __init__(self, closed: int = 32, online: int = 256) -> None:
        self._closed, self._online = closed, online
        self._records: dict[Scope, Record] = {}
        self._floor = NEVER

    def apply(self, events: Iterable[Event]) -> list[str]:
        """Takes events that come together; the outcome of each."""
        outcomes = [self._take(event) for event in events]
        self._forget()
        return outcomes

    def sessions(self) -> set[Scope]:
        return {scope for scope in self._records if self._is_online(scope)}

    def platforms(self) -> list[int]:
        return sorted({self._records[scope].platform for scope in self.sessions()} - {0})

    def remembered(self) -> set[str]:
        """The connections of which anything is known."""
        return {name for kind, name in self._records if kind == "connection"}

    def _take(self, event: Event) -> str:
        scope = scope_of(event)
        if scope not in self._records and scope[0] == "connection" and event.seq <= self._floor:
            return "stale"
        record = self._records.setdefault(scope, Record())
        if event.kind == "offline":
            if event.seq <= record.off:
                return "duplicate" if event.seq == record.off else "stale"
            record.off = event.seq
            return "applied"
        if (event.seq, event.platform_id) <= (record.on, record.platform):
            return "duplicate" if event.seq == record.on else "stale"
        was_online = self._is_online(scope)
        record.on, record.platform = event.seq, event.platform_id
        return "applied" if was_online or self._is_online(scope) else "stale"

    def _is_online(self, scope: Scope) -> bool:
        record = self._records[scope]
        covering = {scope, ("platform", record.platform), ("user", None)} & set(self._records)
        return record.on > NEVER and record.on >= max(self._records[each].off for each in covering)

    def _forget(self) -> None:
        online = sorted((self._records[scope].on, _name(scope), scope) for scope in self.sessions())
        for _, _, scope in online[: -self._online]:
            self._records[scope].on = NEVER
            if self._records[scope].off == NEVER:
                del self._records[scope]
        connections = [scope for scope in self._records if scope[0] == "connection" and not self._is_online(scope)]
        closed = sorted(
            (max(self._records[each].on, self._records[each].off), _name(each), each) for each in connections
        )
        for seq, _, scope in closed[: -self._closed]:
            self._floor = max(self._floor, seq)
            del self._records[scope]


def _name(scope: Scope) -> str:
    """If two sessions have the same seq, the one with the lower name is forgotten first."""
    return f"{scope[0][0]}:{scope[1]}"
