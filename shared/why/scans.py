"""Searches for one user in streams and the queue, which hold all users' events, as far as the time allows."""

import json
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json
from redis import Redis
from rq.job import Job

from openim_presence import Change
from openim_presence.feed import change
from shared import ignored
from shared.events import EVENT, Event
from shared.failed import FailedBatches
from shared.ignored import Ignored
from shared.queue import open_queue
from shared.redis.backend import Backend
from shared.settings import Settings
from shared.why.facts import Place, Scan, Waiting

#: At most this many of a user's entries are returned, the newest.
FOUND_MOST = 10
ENTRIES_MOST = 100_000
JOBS_MOST = 1000
#: For each of the three searches.
SCAN_SECONDS = 1.0
_ENTRIES, _JOBS = 1000, 20

T = TypeVar("T")


class UserMatcher:
    """Rules out quickly, before anything is decoded, what cannot be about a user."""

    def __init__(self, user_id: str) -> None:
        self.user_id = user_id
        self.raw = user_id.encode("utf-8", "surrogatepass")
        self._forms = [json.dumps(user_id).encode()]
        with suppress(PydanticSerializationError):  # a lone surrogate, which is in nobody's id
            self._forms.append(to_json(user_id))

    def may_be_in(self, text: bytes) -> bool:
        return any(form in text for form in self._forms)


def changes(client: Backend, stream: str, matcher: UserMatcher) -> tuple[tuple[Change, ...], Scan]:
    """The user's newest changes, the newest first. Raises RedisError."""

    def read(entry_id: bytes, fields: dict[bytes, bytes]) -> Change | None:
        return change(entry_id, fields) if fields.get(b"user_id") == matcher.raw else None

    return _search(client, stream, read)


def without_effect(client: Backend, stream: str, matcher: UserMatcher) -> tuple[tuple[Ignored, ...], Scan]:
    """The user's newest events that changed nothing, the newest first. Raises RedisError."""

    def read(entry_id: bytes, fields: dict[bytes, bytes]) -> Ignored | None:
        if not matcher.may_be_in(fields.get(b"event", b"")):
            return None
        found = ignored.read(entry_id, fields)
        return found if found and found.event.user_id == matcher.user_id else None

    return _search(client, stream, read)


def _search(
    client: Backend, stream: str, read: Callable[[bytes, dict[bytes, bytes]], T | None]
) -> tuple[tuple[T, ...], Scan]:
    found: list[T] = []
    looked_at, before, give_up_at = 0, "+", time.monotonic() + SCAN_SECONDS
    while True:
        entries: Any = client.xrevrange(stream, before, "-", _ENTRIES)
        looked_at += len(entries)
        found += [each for entry_id, fields in entries if (each := read(entry_id, fields)) is not None]
        if len(entries) < _ENTRIES:
            return tuple(found[:FOUND_MOST]), Scan(looked_at)
        last = entries[-1][0].decode()
        if len(found) >= FOUND_MOST or looked_at >= ENTRIES_MOST or time.monotonic() > give_up_at:
            return tuple(found[:FOUND_MOST]), Scan(looked_at, False, int(last.partition("-")[0]))
        before = f"({last}"


def waiting(client: Redis, settings: Settings, matcher: UserMatcher) -> tuple[tuple[Waiting, ...], Scan]:
    """The user's events on the queue that are not applied, those that failed first. Raises RedisError."""
    jobs = _jobs(client, settings)
    batches = FailedBatches(client, settings)
    found: list[Waiting] = []
    looked_at, is_whole, give_up_at = 0, len(jobs) <= JOBS_MOST, time.monotonic() + SCAN_SECONDS
    remaining = iter(list(jobs.items())[:JOBS_MOST])
    while some := list(islice(remaining, _JOBS)):
        if time.monotonic() > give_up_at:
            is_whole = False
            break
        pipeline = client.pipeline(transaction=False)
        for job_id, _ in some:
            pipeline.hget(Job.key_for(job_id), "data")
        for (job_id, (place, next_at_ms)), data in zip(some, pipeline.execute(), strict=True):
            looked_at += 1
            events = _events(data, matcher) if data else []
            tried = place in ("failed", "retrying") and events
            error = next(batches.describe([job_id])).error if tried else ""
            found += [Waiting(place, event, job_id, error, next_at_ms) for event in events]
    return tuple(found), Scan(looked_at, is_whole)


def _jobs(client: Redis, settings: Settings) -> dict[str, tuple[Place, int]]:
    """Each job's place and next try, 0 if none is planned. It is one transaction, so a job that moves is not missed."""
    queue = open_queue(client, settings)
    with client.pipeline() as transaction:
        transaction.zrange(queue.failed_job_registry.key, 0, JOBS_MOST)
        transaction.zrange(queue.scheduled_job_registry.key, 0, JOBS_MOST, withscores=True)
        transaction.zrange(queue.started_job_registry.key, 0, JOBS_MOST)
        transaction.lrange(queue.intermediate_queue_key, 0, JOBS_MOST)
        transaction.lrange(queue.key, 0, JOBS_MOST)
        failed, scheduled, started, taken, queued = transaction.execute()
    places: list[tuple[Place, list[bytes]]] = [
        ("failed", failed), ("retrying", [job_id for job_id, _ in scheduled]), ("running", started), ("running", taken),
        ("queued", queued),
    ]  # fmt: skip
    next_at_ms = {job_id: int(score) * 1000 for job_id, score in scheduled}
    found: dict[str, tuple[Place, int]] = {}
    for place, ids in places:
        for job_id in ids:
            found.setdefault(job_id.decode().partition(":")[0], (place, next_at_ms.get(job_id, 0)))
    return found


def _events(data: bytes, matcher: UserMatcher) -> list[Event]:
    """The user's events in a job; none if the job is not ours."""
    try:
        text = zlib.decompress(data)
    except zlib.error:
        text = data
    if not matcher.may_be_in(text):
        return []
    try:
        events = from_json(text)[2][0]
    except (ValueError, LookupError, TypeError):
        return []
    return [_event(each) for each in events if isinstance(each, list) and each[:1] == [matcher.user_id]]


def _event(fields: Sequence[Any]) -> Event:
    """The event. If it is not valid, which may be why it failed, what can be read of it."""
    try:
        return EVENT.validate_python(fields)
    except ValidationError:
        command = str(fields[1]) if len(fields) > 1 else ""
        return Event(fields[0], command, 0, "", 0, "", "", 0)  # type: ignore[arg-type]
