"""Presence, written straight from docs/redis-keys.md: a plain function of a set of events.

Holds while no bound is reached: 32 closed connections and 256 sessions a user.
"""

from collections.abc import Iterable

from shared.events import Event


def sessions(events: Iterable[Event]) -> set[tuple[str, object]]:
    """The sessions that are online, by scope."""
    events = list(events)
    online = [event for event in events if event.kind == "online"]
    offline = [event for event in events if event.kind == "offline"]
    found = set()
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
            found.add(scope)
    return found


def scope_of(event: Event) -> tuple[str, object]:
    if event.conn_id:
        return ("connection", event.conn_id)
    if event.platform_id:
        return ("platform", event.platform_id)
    return ("user", None)


def newest_seq(events: Iterable[Event]) -> int:
    return max(event.seq for event in events)
