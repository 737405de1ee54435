"""Asking both servers for the facts of one user."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

from redis import Redis
from redis.exceptions import RedisError, ResponseError

from shared import memory
from shared.memory import Memory
from shared.observe.collector import collect_queue
from shared.observe.snapshot import QueueState, Server
from shared.redis.backend import Backend
from shared.settings import Settings, without_password
from shared.timed import Probe
from shared.why import judgement, scans
from shared.why.facts import Facts, Journal, OpenIMSays, Scan
from shared.why.scans import UserMatcher

#: How long OpenIM may take, which is asked beside all else; and the most with what both servers of ours take for that.
OPENIM_SECONDS, OPENIM_MOST_SECONDS = 4.5, 5.0

T = TypeVar("T")


def look_up(presence: Backend, queue: Redis, settings: Settings, user_id: str) -> Facts:
    """All that is known of a user. Raises RedisError if presence does not answer.

    If anything else cannot be read, the facts have it as a trouble.
    """
    keys, matcher, troubles = settings.keys, UserMatcher(user_id), list[str]()
    asking = Probe("OpenIM", lambda: _ask(settings, user_id), OPENIM_MOST_SECONDS) if settings.openim_api else None

    def attempt(what: str, read: Callable[[], T], otherwise: T) -> T:
        try:
            return read()
        except RedisError as error:
            troubles.append(f"{what}: {error}")
            return otherwise

    remembered, key_type = _hash(presence, keys.user(user_id).encode("utf-8", "surrogatepass"))
    where = f"the queue's Redis, {without_password(settings.queue_url)}"
    state = attempt(where, lambda: collect_queue(queue, settings), QueueState(Server(error="away")))
    troubles += (*state.troubles, *state.denied)
    nothing: Any = ((), Scan(is_whole=False))
    waiting, waiting_scan = nothing
    if not state.server.error:
        waiting, waiting_scan = attempt(where, lambda: scans.waiting(queue, settings, matcher), nothing)
    changes, changes_scan = attempt(keys.changes, lambda: scans.changes(presence, keys.changes, matcher), nothing)
    ignored, ignored_scan = attempt(
        keys.ignored, lambda: scans.without_effect(presence, keys.ignored, matcher), nothing
    )
    due: Any = attempt(keys.leases, lambda: presence.zscore(keys.leases, matcher.raw), None)
    stats: Any = attempt(keys.stats, lambda: presence.exists(keys.stats), 1)
    openim = (asking.result() or OpenIMSays(trouble=f"OpenIM: {asking.trouble}")) if asking else None
    troubles += [openim.trouble] if openim and openim.trouble else []
    return Facts(
        user_id,
        at_ms=state.at_ms or time.time_ns() // 1_000_000,
        prefix=keys.prefix,
        memory=remembered,
        key_type=key_type,
        similar=() if remembered else attempt("similar ids", lambda: _similar(presence, settings, user_id), ()),
        is_empty=not stats,
        lease_ms=settings.online_lease_seconds * 1000 or _lease_by(due, remembered),
        leases_held=state.leases_held,
        retention_seconds=settings.retention_seconds,
        changes=changes,
        changes_scan=changes_scan,
        ignored=ignored,
        ignored_scan=ignored_scan,
        waiting=waiting,
        waiting_scan=waiting_scan,
        journals=tuple(Journal(each.name, each.events, each.watermark_ms) for each in state.receivers if each.events),
        workers=None if state.server.error else len(state.workers),
        openim=openim,
        troubles=tuple(troubles),
    )


def _ask(settings: Settings, user_id: str) -> OpenIMSays:
    from shared.why import asking  # aiohttp would make every `presence` command take half as long again to start

    return asking.ask(settings, user_id, OPENIM_SECONDS)


def _hash(client: Backend, key: bytes) -> tuple[Memory | None, str]:
    """What the key remembers, and its type if it is not a hash."""
    try:
        fields: Any = client.hgetall(key)
    except ResponseError as error:
        if not str(error).startswith("WRONGTYPE"):
            raise
        kind: Any = client.type(key)
        return None, kind.decode()
    return memory.read(fields) if fields else None, ""


def _similar(client: Backend, settings: Settings, user_id: str) -> tuple[str, ...]:
    """Known ids that the caller may have meant."""
    forms = dict.fromkeys(form(user_id) for form in (str.strip, str.lower, str.upper, str.capitalize, str.swapcase))
    forms.pop(user_id, None)
    keys = {form: settings.keys.user(form).encode("utf-8", "surrogatepass") for form in forms if form}
    return tuple(form for form, key in keys.items() if client.exists(key))


def _lease_by(due: float | None, remembered: Memory | None) -> int:
    """How long leases last, in milliseconds, by what workers wrote: this program may not have their settings."""
    online = [each.record for each in judgement.sessions(remembered) if each.is_online] if remembered else []
    began = min((record.lease_began_ms for record in online if record.lease_began_ms is not None), default=None)
    return max(0, int(due) - began) if due is not None and began is not None else 0
