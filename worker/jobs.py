"""The job that RQ runs: one batch of events, applied to presence.

Works under `python -m worker` and under plain `rq worker`; either way the settings come from the environment.
"""

import functools
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from pydantic import ValidationError
from redis.exceptions import RedisError
from rq import Retry, get_current_job
from rq.job import Job

from shared.errors import Unavailable
from shared.events import EVENT, EVENTS, Event, describe
from shared.logs.outage import Outage
from shared.logs.throttle import LogThrottle
from shared.queue import EVENT_RETRY_SECONDS, KEPT_SECONDS, BatchMeta, enqueue_alone, open_queue
from shared.redis.client import connect
from shared.settings import Settings, load, without_password
from worker import gateways, rq_clock
from worker.clock_ahead import correct, is_ahead
from worker.reconcile.doubtful import Doubtful
from worker.store.store import Outcome, Poison, Store

#: While presence cannot be written, a job waits for about this long, then lets others have a turn. It comes back
#: after RETRY_SECONDS, as often as necessary, and uses up none of its own retries.
PATIENCE_SECONDS = 3.0
#: The time for one answer of presence. A job must end before it counts as abandoned, after 15 s.
ANSWER_SECONDS = 3.0
RETRY_SECONDS = 2
ENDLESSLY = 10**9

log = logging.getLogger("worker")
_troubles = LogThrottle(log)
_clocks = LogThrottle(log)


@functools.cache
def _settings() -> Settings:
    return load()


@functools.cache
def _store() -> Store:
    return Store(connect(_settings().redis_url, timeout=ANSWER_SECONDS), _settings(), rq_clock.now_ms)


@functools.cache
def outage() -> Outage:
    """The outage of the presence server, if there is one."""
    return Outage(log, f"Redis for presence, {without_password(_settings().redis_url)},", longest_seconds=1.0)


def prepare() -> None:
    """Prepares the presence server, if it answers. Raises SettingsError if it is too old."""
    with suppress(Unavailable):  # the first job will wait for it
        _store().prepare()


def apply_batch(events: list[Any]) -> Retry | None:
    """Applies events, as `shared.events.encode` wrote them; called by RQ.

    An event that cannot be applied goes on alone, as a separate job with growing pauses between its tries; the others
    of its batch are applied. Once such an event is alone, Poison is raised for it, so that RQ keeps it among the failed
    jobs with this error. If all events of a batch fail with the same error, the batch stays together: the cause is then
    probably not in the events.
    """
    job = get_current_job()
    meta = BatchMeta.decode(job.meta) if job else BatchMeta()
    readable, failures = _decode(events)
    if ahead := [event for _, event in readable if is_ahead(event)]:
        readable = [(index, correct(event)) for index, event in readable]
    received = [event for _, event in readable]
    if job is not None:  # before they are applied: their batches came even if they cannot be applied now
        gateways.note(job.connection, _settings().keys, received, rq_clock.now_ms(), meta.skew_ms)
    try:
        results = _apply_patiently(received, meta)
    except Unavailable:
        return Retry(max=ENDLESSLY, interval=RETRY_SECONDS)
    except Exception as error:  # a bug of ours or wrong settings: RQ would try again without a pause
        poison = Poison(f"{type(error).__name__}: {error}")
        poison.__cause__ = error
        results = [poison] * len(readable)
    if job is not None and _settings().reconcile_seconds and (users := _ambiguous(received, results)):
        with suppress(RedisError):  # a later comparison will do
            Doubtful(job.connection, _settings().keys).add(users, rq_clock.now_ms())
    failures += [
        (index, result) for (index, _), result in zip(readable, results, strict=True) if isinstance(result, Poison)
    ]
    if log.isEnabledFor(logging.DEBUG):
        _tell(readable, results)
    if ahead:
        _tell_ahead(ahead)
    if failures:
        _set_apart(job, meta, events, failures)
    if job is not None and _settings().has_separate_queue:
        job.result_ttl = KEPT_SECONDS  # presence might forget it; the sweep decides when it is safe
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
            failures.append((index, Poison(f"this is not an event: {field}: {first['msg']}")))
    return readable, failures


def _apply_patiently(events: Sequence[Event], meta: BatchMeta) -> list[Outcome | Poison]:
    """Raises Unavailable if presence could not be written for PATIENCE_SECONDS."""
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            results = _store().apply(events, meta.skew_ms, counts_lag=not meta.was_requeued)
        except Unavailable as error:
            pause = outage().failed(error)
            if time.monotonic() + pause > give_up_at:
                raise
            time.sleep(pause)
        else:
            outage().over()
            return results


def _ambiguous(events: Sequence[Event], results: Sequence[Outcome | Poison]) -> set[str]:
    """The users for whom a batch names a platform both online and offline, also if its parts came in several jobs."""
    return {
        event.user_id
        for event, result in zip(events, results, strict=True)
        if isinstance(result, Outcome) and result.is_ambiguous
    }


def _tell(readable: Sequence[tuple[int, Event]], results: Sequence[Outcome | Poison]) -> None:
    for (_, event), result in zip(readable, results, strict=True):
        if isinstance(result, Outcome):
            log.debug("%s%s", result.name, ", status changed" if result.flipped else "", extra=describe(event))


def _tell_ahead(ahead: Sequence[Event]) -> None:
    _store().count("clock_ahead", len(ahead))
    for event in ahead:
        _clocks.say(
            logging.WARNING,
            "the clock of the gateway at %s is %.1f s ahead of the receiver's: the event counts as of its receipt. "
            "Keep NTP running on both",
            event.peer or "an unknown address",
            (event.seq - event.received_at) / 1000,
            extra=describe(event),
        )


def _set_apart(job: Job | None, meta: BatchMeta, events: Sequence[Any], failures: Sequence[tuple[int, Poison]]) -> None:
    """Puts each failed event into its own job. Raises Poison if they stay together, or outside a job of RQ's."""
    poison = failures[0][1]
    if job is None:
        raise poison
    if len(events) > 1 and _fail_alike(events, failures):
        if not meta.attempts:
            job.retries_left, job.retry_intervals = len(EVENT_RETRY_SECONDS), list(EVENT_RETRY_SECONDS)
        _note_failure(job, meta, events, poison)
        raise poison
    if len(events) == 1 and meta.attempts:
        _note_failure(job, meta, events, poison)
        raise poison
    queue = open_queue(job.connection, _settings())
    for index, poison in failures:
        _troubles.say(
            logging.ERROR, "an event cannot be applied and goes on alone: %s", poison, extra=describe(events[index])
        )
        enqueue_alone(queue, events[index], f"{job.id}-{index}", meta, str(poison))


def _fail_alike(events: Sequence[Any], failures: Sequence[tuple[int, Poison]]) -> bool:
    """True if events of several users have all failed with the same error."""
    users = {describe(event)["user_id"] for event in events}
    return len(failures) == len(events) and len({str(poison) for _, poison in failures}) == 1 and len(users) > 1


def _note_failure(job: Job, meta: BatchMeta, events: Sequence[Any], poison: Poison) -> None:
    meta = replace(meta, attempts=meta.attempts + 1)
    job.meta = meta.encode()
    job.save_meta()  # type: ignore[no-untyped-call]
    what = "an event" if len(events) == 1 else f"a batch of {len(events)} events"
    extra = describe(events[0])
    if job.retries_left:
        _troubles.say(logging.WARNING, "%s still cannot be applied: %s", what, poison, extra=extra)
        return
    _store().count("failed", len(events))
    _troubles.say(
        logging.ERROR,
        "%s has failed %d times and waits for you, see presence failed list: %s",
        what,
        meta.attempts,
        poison,
        extra=extra,
    )
