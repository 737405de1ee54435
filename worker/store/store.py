"""The presence store: events in, outcomes out, one atomic step on the server for the events of each user.

The step is a Redis Function (FUNCTION LOAD, FCALL) rather than a script (EVALSHA): functions persist and
replicate, so neither a restart nor a failover answers a full pipeline with NOSCRIPT. The price is Redis 7.0.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar, get_args

from redis.exceptions import RedisError, ResponseError

from shared import ignored
from shared.errors import PresenceError, SettingsError, Unavailable
from shared.events import KINDS, Event
from shared.logs.throttle import LogThrottle
from shared.observe.counters import lag_counts
from shared.redis.backend import Backend
from shared.redis.client import is_outage
from shared.settings import Settings
from worker.store import library, pipelining
from worker.store.outbox import Outbox
from worker.store.replicas import Replicas
from worker.store.replies import Applied, OutcomeName, Reviewed, is_missing_function, read_applied, read_reviewed

PIPELINE_EVENTS = 1000
#: The most events of one user in one step, so that no user holds up the server.
STEP_EVENTS = 100
#: What the functions in lua/ call each command.
_KINDS = {name: "kick_off" if "KickOff" in name else kind for name, kind in KINDS.items()}

log = logging.getLogger("worker.store")
_troubles = LogThrottle(log)

T = TypeVar("T")
R = TypeVar("R", bound=Applied | Reviewed)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one event. flipped: it was the last of a step that changed the user's status."""

    name: OutcomeName
    flipped: bool = False


_OUTCOMES = {(name, flipped): Outcome(name, flipped) for name in get_args(OutcomeName) for flipped in (False, True)}


class Poison(PresenceError):
    """This one event cannot be applied as things stand, however healthy the server."""


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class Store:
    """Presence in one Redis, or in a Redis Cluster. The client must decode nothing and retry nothing.

    Every method raises Unavailable if the server cannot do all of it at the moment. Part of it may then be done; doing
    it again is harmless. clock: returns Unix milliseconds.
    """

    def __init__(self, client: Backend, settings: Settings, clock: Callable[[], int] = _now_ms) -> None:
        self._client = client
        self._now_ms = clock
        self._keys = settings.keys
        keys = self._keys
        self._replicas = Replicas(client)
        self._outbox = Outbox(client, settings, library.NAME, self._replicas) if client.is_cluster else None
        #: The keys that share a step with the hash.
        self._shared = () if self._outbox else (keys.changes, keys.stats, keys.leases)
        options = (settings.changes_maxlen, settings.retention_seconds, settings.online_lease_seconds * 1000)
        self._options = tuple(map(str, options))  # as they are sent, with each command

    def apply(self, events: Sequence[Event], skew_ms: int = 0, *, counts_lag: bool = True) -> list[Outcome | Poison]:
        """Applies events; returns for each its outcome, or why it has none.

        Events of one user are one step: readers see only their result. skew_ms: how far the clock of the receiver that
        took them is ahead of ours. counts_lag: False for events that waited for a person.
        """
        steps, now_ms = list(_steps(events)), self._now_ms() + skew_ms
        calls = ((user_id, self._arguments(events, indexes, now_ms)) for user_id, indexes in steps)
        replies = self._call(library.NAME, calls, read_applied)
        results: list[Outcome | Poison] = [_OUTCOMES["stale", False]] * len(events)
        for (_, indexes), reply in zip(steps, replies, strict=True):
            for index, result in zip(indexes, _results(reply, len(indexes)), strict=True):
                results[index] = result
        readings = Counter(
            f"ambiguous_{each}" for reply in replies if isinstance(reply, Applied) for each in reply.readings
        )
        self._count_applied(events, results, readings, skew_ms, counts_lag)
        return results

    def _arguments(self, events: Sequence[Event], indexes: Sequence[int], now_ms: int) -> list[object]:
        arguments: list[object] = [events[indexes[0]].user_id, *self._options, now_ms]
        for index in indexes:
            event = events[index]
            arguments += (
                _KINDS[event.command],
                event.seq,
                event.conn_id,
                event.platform_id,
                event.received_at,
                event.command,
                event.platform,
                event.operation_id,
                event.id,
            )
        return arguments

    def _count_applied(
        self,
        events: Sequence[Event],
        results: Sequence[Outcome | Poison],
        readings: "Counter[str]",
        skew_ms: int,
        counts_lag: bool,
    ) -> None:
        outcomes = [(event, each) for event, each in zip(events, results, strict=True) if isinstance(each, Outcome)]
        counts = readings + Counter[str](each.name for _, each in outcomes)
        if counts_lag:
            received = (event.received_at for event, each in outcomes if each.name == "applied")
            counts.update(lag_counts(received, self._now_ms() + skew_ms))
        without_effect = [(each.name, event) for event, each in outcomes if each.name != "applied"]
        self._count(counts, sum(each.flipped for _, each in outcomes), without_effect)

    def due(self, until_ms: int, most: int) -> dict[str, float]:
        """Users with a lease that has run out at `until_ms`, and when it ended: the earliest first, at most `most`."""
        with _unavailable():
            found: Any = self._client.zrange(
                self._keys.leases, "-inf", until_ms, byscore=True, offset=0, num=most, withscores=True
            )
        return {user_id.decode(errors="replace"): score for user_id, score in found}

    def review(self, user_ids: Sequence[str], until_ms: int, now_ms: int, due: dict[str, float] | None = None) -> int:
        """Closes the users' sessions whose leases have run out at `until_ms`; returns how many it closed.

        It also gives users that were last written under other settings the lease and the retention that are set now,
        counted from `now_ms`. due: as `due` returned them.
        """
        calls = ((each, (each, *self._options, self._now_ms(), until_ms, now_ms)) for each in user_ids)
        replies = self._call(f"{library.NAME}_review", calls, read_reviewed)
        reviewed = [reply for reply in replies if not isinstance(reply, Exception)]
        expired = sum(reply.expired for reply in reviewed)
        self._count(Counter(expired=expired), sum(reply.flipped for reply in reviewed))
        with _unavailable():
            if self._outbox and due:
                ends = [None if isinstance(reply, Exception) else reply.on_cluster for reply in replies]
                self._outbox.reschedule(due, user_ids, ends)
                # A session that was opened since they were reviewed left the lease that was due as it was.
                pairs = zip(user_ids, ends, strict=True)
                if without := [each for each, end in pairs if end and end.lease_ends_at_ms is None]:
                    expired += self.review(without, until_ms, now_ms)
            broken = [each for each, reply in zip(user_ids, replies, strict=True) if isinstance(reply, Exception)]
            if broken and due:
                self._client.zrem(self._keys.leases, *broken)  # their keys are no longer hashes
        return expired

    def user_ids(self) -> Iterator[str]:
        """Every user, by SCAN; some of them twice."""
        with _unavailable():
            for key in self._client.scan_iter(match=self._keys.user("*"), count=PIPELINE_EVENTS):
                yield self._keys.user_id(key.decode(errors="replace"))

    def run_ids(self) -> str:
        """The run ids of the servers; each start of a server has its own."""
        with _unavailable():
            return " ".join(sorted(self._client.at_each_primary(lambda server: str(server.info("server")["run_id"]))))

    def prepare(self) -> None:
        """Loads the functions. Raises SettingsError if the server is too old for them."""
        try:
            self._client.at_each_primary(lambda server: server.function_load(library.SOURCE, replace=True))
        except RedisError as error:
            if "unknown command" in str(error):
                raise SettingsError(
                    "PRESENCE_REDIS_URL: the server is too old; Redis 7.0 or later is needed, or Valkey"
                ) from None
            raise Unavailable(f"presence cannot be written: {_reason(error)}") from error

    def _call(
        self, function: str, calls: Iterable[tuple[str, Sequence[Any]]], read: Callable[[list[Any]], R]
    ) -> list[R | Exception]:
        """The reply to each call, or its error if only that user is the cause."""
        prepared: list[tuple[Any, ...]] = []

        def commands() -> Iterator[tuple[Any, ...]]:
            for user_id, arguments in calls:
                key = self._keys.user(user_id)
                prepared.append(("FCALL", function, 1 + len(self._shared), key, *self._shared, *arguments))
                yield prepared[-1]

        with _unavailable():
            replies = self._send(commands())
            if any(is_missing_function(reply) for reply in replies):
                try:
                    self.prepare()
                except SettingsError as error:  # found out late: the batch at hand must not fail because of it
                    raise Unavailable(str(error)) from error
                replies = self._send(prepared)
            results = [reply if isinstance(reply, Exception) else read(reply) for reply in replies]
            if self._outbox:
                done = [
                    (command[3], each.on_cluster)
                    for command, each in zip(prepared, results, strict=True)
                    if not isinstance(each, Exception)
                ]
                self._outbox.carry_out({key: todo for key, todo in done if todo})
            for reply in replies:
                if isinstance(reply, Exception) and (is_outage(reply) or is_missing_function(reply)):
                    raise reply
            if any(isinstance(reply, Exception) for reply in replies):
                self._check_stream()
        return results

    def _send(self, commands: Iterable[tuple[Any, ...]]) -> list[Any]:
        if not self._replicas.expected:
            return pipelining.execute(self._client, commands)
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)  # type: ignore[no-untyped-call]
        return self._replicas.execute(pipeline)

    def _check_stream(self) -> None:
        """A stream of a wrong type would make every change look like a poison event of its own."""
        kind = self._client.type(self._keys.changes)
        if kind not in (b"stream", b"none"):
            raise Unavailable(f"the key {self._keys.changes} is not a stream; rename it, changes go there")

    def count(self, name: str, events: int = 1) -> None:
        """Adds to a counter of `presence-stats`. Raises nothing: events matter more than their count."""
        with suppress(RedisError):
            self._client.hincrby(self._keys.stats, name, events)

    def _count(
        self, counts: "Counter[str]", flips: int, without_effect: Sequence[tuple[ignored.IgnoredName, Event]] = ()
    ) -> None:
        if self._outbox:  # elsewhere the step itself has counted them
            counts["changes"] = flips
        pipeline = self._client.pipeline(transaction=False)
        for name, count in counts.items():
            if count:
                pipeline.hincrby(self._keys.stats, name, count)
        ignored.note(pipeline, self._keys.ignored, without_effect)
        with _unavailable():
            try:
                if pipeline:
                    pipeline.execute()
            except ResponseError as error:
                if is_outage(error):
                    raise
                keys = self._keys
                _troubles.say(logging.ERROR, "%s or %s cannot be written: %s", keys.stats, keys.ignored, error)


def _steps(events: Sequence[Event]) -> Iterator[tuple[str, list[int]]]:
    """Each user with the indexes of their events, in order, STEP_EVENTS at a time."""
    by_user: dict[str, list[int]] = {}
    for index, event in enumerate(events):
        by_user.setdefault(event.user_id, []).append(index)
    for user_id, indexes in by_user.items():
        for start in range(0, len(indexes), STEP_EVENTS):
            yield user_id, indexes[start : start + STEP_EVENTS]


def _results(reply: Applied | Exception, count: int) -> Sequence[Outcome | Poison]:
    if isinstance(reply, Exception):
        return [Poison(_reason(reply))] * count
    return _outcomes(reply.outcomes, reply.flipped)


@lru_cache(1000)  # most steps are of one event
def _outcomes(names: tuple[OutcomeName, ...], flipped: bool) -> tuple[Outcome, ...]:
    last = len(names) - 1
    return tuple(_OUTCOMES[name, flipped and index == last] for index, name in enumerate(names))


@contextmanager
def _unavailable() -> Iterator[None]:
    try:
        yield
    except RedisError as error:
        raise Unavailable(f"presence cannot be written: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What the server says, without the name and the line of our function, which would help nobody."""
    return str(error).partition(" script: ")[0]
