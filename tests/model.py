"""Presence, written straight from docs/redis-keys.md: a plain function of a set of events.

Holds while no bound is reached: 32 closed connections and 256 sessions a user. `Leased` adds what is not a function of
the set alone: leases that run out, and users that are forgotten.
"""

from collections.abc import Iterable

from shared.events import Event

Scope = tuple[str, object]


def sessions(events: Iterable[Event]) -> set[Scope]:
    """The sessions that are online, by scope."""
    return set(openers(events))


def openers(events: Iterable[Event]) -> dict[Scope, Event]:
    """The sessions that are online, by scope, each with the event that opened it."""
    events = list(events)
    online = [event for event in events if event.kind == "online"]
    offline = [event for event in events if event.kind == "offline"]
    found = {}
    for scope in {scope_of(event) for event in online}:
        # The online event with the highest seq opened it, and says which platform it is on.
        opener = max(
            (event for event in online if scope_of(event) == scope),
            key=lambda event: (event.seq, event.platform_id),
        )
        covering = {scope, ("user", None)}
        if opener.platform_id:
            covering.add(("platform", opener.platform_id))
        if all(opener.seq >= event.seq for event in offline if scope_of(event) in covering):
            found[scope] = opener
    return found


def scope_of(event: Event) -> Scope:
    if event.conn_id:
        return ("connection", event.conn_id)
    if event.platform_id:
        return ("platform", event.platform_id)
    return ("user", None)


def newest_seq(events: Iterable[Event]) -> int:
    return max(event.seq for event in events)


class Leased:
    """Users whose sessions must be renewed. lease: milliseconds. changes: (user, previous, status, command)."""

    def __init__(self, lease: int) -> None:
        self._lease = lease
        self._events: dict[str, list[Event]] = {}
        self._expired: dict[str, dict[Scope, int]] = {}
        self._status: dict[str, str] = {}
        self.changes: list[tuple[str, str, str, str]] = []

    @property
    def status(self) -> dict[str, str]:
        return self._status

    def sessions(self, user: str) -> dict[Scope, Event]:
        expired = self._expired.get(user, {})
        return {
            scope: opener
            for scope, opener in openers(self._events.get(user, [])).items()
            if expired.get(scope, -1) < opener.seq
        }

    def lease_ends(self, user: str) -> int | None:
        """The end of the earliest lease. Of two online events with one seq, the one that came first began it."""
        return min((self._began(user, scope, each) for scope, each in self.sessions(user).items()), default=None)

    def _began(self, user: str, scope: Scope, opener: Event) -> int:
        same = (
            each
            for each in self._events[user]
            if each.kind == "online" and scope_of(each) == scope and each.seq == opener.seq
        )
        return next(same).received_at + self._lease

    def apply(self, events: Iterable[Event]) -> None:
        """Events of one user that come together are one step, put down to the last that changed the status."""
        by_user: dict[str, list[Event]] = {}
        for event in events:
            by_user.setdefault(event.user_id, []).append(event)
        for user, of_user in by_user.items():
            command, status = of_user[0].command, self._status.get(user, "")
            for event in of_user:
                self._events.setdefault(user, []).append(event)
                before, status = status, self._status_by_sessions(user)
                command = event.command if status != before else command
            self._note(user, command)

    def sweep(self, until: int) -> None:
        for user in sorted(self._events, key=lambda user: (self.lease_ends(user) or 0, user)):
            for scope, opener in self.sessions(user).items():
                if self._began(user, scope, opener) <= until:
                    self._expired.setdefault(user, {})[scope] = opener.seq
            self._note(user, "lease_expired")

    def forget(self, user: str) -> None:
        for of_users in (self._events, self._expired, self._status):
            of_users.pop(user, None)  # type: ignore[attr-defined]

    def _status_by_sessions(self, user: str) -> str:
        return "online" if self.sessions(user) else "offline"

    def _note(self, user: str, command: str) -> None:
        previous, status = self._status.get(user, ""), self._status_by_sessions(user)
        if status != previous:
            self._status[user] = status
            self.changes.append((user, previous, status, command))
