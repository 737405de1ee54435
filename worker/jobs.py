"""The job that RQ runs: one batch of events, applied to presence.

Works under `python -m worker` and under plain `rq worker`; either way the settings come from the environment.
"""

import functools
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from pydantic import ValidationError
from rq import Retry, get_current_job

from shared.errors import Unavailable
from shared.events import EVENT, EVENTS, Event
from shared.outage import Outage
from shared.queue import enqueue_alone, open_queue
from shared.redis import connect
from shared.settings import Settings, load, without_password
from worker.store import Outcome, Poison, Store

#: While presence cannot be written a job waits for about so long, then lets others have a turn; it comes back
#: after RETRY_SECONDS, as often as it takes, and none of its own retries is used up.
PATIENCE_SECONDS = 3.0
#: For one answer of presence. All of a job must be over before it counts as abandoned, after 15 s.
ANSWER_SECONDS = 3.0
RETRY_SECONDS = 2
ENDLESSLY = 10**9

log = logging.getLogger("worker")


@functools.cache
def _settings() -> Settings:
    return load()


@functools.cache
def _store() -> Store:
    return Store(connect(_settings().redis_url, timeout=ANSWER_SECONDS), _settings())


@functools.cache
def _outage() -> Outage:
    return Outage(log, f"Redis for presence, {without_password(_settings().redis_url)},", longest=1.0)


def prepare() -> None:
    """Makes the presence server ready, where it is there. Raises SettingsError where it is too old."""
    with suppress(Unavailable):  # the first job will wait for it
        _store().prepare()


def apply_batch(events: list[Any]) -> Retry | None:
    """Applies events, as `shared.events.encode` wrote them; called by RQ.

    An event that cannot be applied goes on alone, as a job of its own with growing pauses between its tries;
    the others of its batch are applied. Raises Poison for such an event once it is alone, so that RQ keeps it
    among the failed jobs with this error.
    """
    readable, failures = _decode(events)
    try:
        results = _apply_patiently([event for _, event in readable])
    except Unavailable:
        return Retry(max=ENDLESSLY, interval=RETRY_SECONDS)
    failures += [
        (index, result) for (index, _), result in zip(readable, results, strict=True) if isinstance(result, Poison)
    ]
    if failures and len(events) == 1:
        raise failures[0][1]
    for index, poison in failures:
        _set_apart(events[index], index, poison)
    return None


def _decode(events: Sequence[Any]) -> tuple[list[tuple[int, Event]], list[tuple[int, Poison]]]:
    with suppress(ValidationError):
        return list(enumerate(EVENTS.validate_python(events))), []
    readable: list[tuple[int, Event]] = []
    failures: list[tuple[int, Poison]] = []
    for index, event in enumerate(events):
        try:
            readable.append((index, EVENT.validate_python(event)))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(map(str, first["loc"]))
            failures.append((index, Poison(f"this is no event: {field}: {first['msg']}")))
    return readable, failures


def _apply_patiently(events: Sequence[Event]) -> list[Outcome | Poison]:
    """Raises Unavailable when presence could not be written for PATIENCE_SECONDS."""
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            results = _store().apply(events)
        except Unavailable as error:
            pause = _outage().failed(error)
            if time.monotonic() + pause > give_up_at:
                raise
            time.sleep(pause)
        else:
            _outage().over()
            return results


def _set_apart(event: Any, index: int, poison: Poison) -> None:
    job = get_current_job()
    if job is None:
        raise poison  # not run by RQ: there is no queue to put it on
    log.error("an event cannot be applied and goes on alone: %s", poison)
    queue = open_queue(job.connection, _settings())
    enqueue_alone(queue, event, f"{job.id}-{index}", job.meta.get("since", 0), str(poison))
