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
from itertools import chain
from operator import itemgetter
from typing import Any, TypeVar

from redis.exceptions import RedisError, ResponseError

from shared import ignored
from shared.errors import PresenceError, SettingsError, Unavailable
from shared.events import Event
from shared.logs.throttle import LogThrottle
from shared.observe.counters import lag_counts
from shared.redis.backend import Backend
from shared.redis.client import is_outage
from shared.redis.exchange import exchange, pack
from shared.settings import Settings
from worker.store import library
from worker.store.outbox import Outbox
from worker.store.replicas import Replicas
from worker.store.replies import (
    FAILED,
    LETTERS,
    READINGS,
    Applied,
    OutcomeName,
    Reviewed,
    is_missing_function,
    read_applied,
    read_reviewed,
)

PIPELINE_EVENTS = 1000
#: The most events of one user in one step, so that no user holds up the server; less than 256, as a byte says how many.
STEP_EVENTS = 100
#: About how many events there are in one call, of several users: enough that the call itself costs little, and so few
#: that it holds up the server for less than a millisecond.
CALL_EVENTS = 16
#: The fields of an event that the functions get, from `command` to `id`; `read_events` in lua/presence.lua knows them.
_sent = itemgetter(slice(Event._fields.index("command"), Event._fields.index("id") + 1))

log = logging.getLogger("worker.store")
_troubles = LogThrottle(log)

T = TypeVar("T")
R = TypeVar("R", bound=Applied | Reviewed)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one event. flipped: it was the last of a step that changed the user's status. is_ambiguous: it was
    the last of a step after which a batch named a platform both online and offline.
    """

    name: OutcomeName
    flipped: bool = False
    is_ambiguous: bool = False


_OUTCOMES = {letter: Outcome(*meaning) for letter, meaning in LETTERS.items()}
#: A user, and the indexes of those of their events that are one step, in order.
Step = tuple[str, list[int]]


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
        self._call_events = 1 if self._outbox else CALL_EVENTS
        self._options = (
            settings.changes_maxlen,
            settings.retention_seconds,
            settings.online_lease_seconds * 1000,
            len(keys.user("").encode()) + 1,  # where the user's id begins in a key
        )

    def apply(self, events: Sequence[Event], skew_ms: int = 0, *, counts_lag: bool = True) -> list[Outcome | Poison]:
        """Applies events; returns for each its outcome, or why it has none.

        Events of one user are one step: readers see only their result. skew_ms: how far the clock of the receiver that
        took them is ahead of ours. counts_lag: False for events that waited for a person.
        """
        calls = list(groups(events, self._call_events))
        now_ms = self._now_ms() + skew_ms
        replies = self._call((self.command(events, group, now_ms) for group in calls), read_applied)
        results: list[Outcome | Poison] = [_OUTCOMES["s"]] * len(events)
        for group, reply in zip(calls, replies, strict=True):
            for index, result in _results(group, reply):
                results[index] = result
        letters = "".join(reply.readings for reply in replies if isinstance(reply, Applied))
        readings = Counter({f"ambiguous_{name}": letters.count(letter) for letter, name in READINGS.items()})
        self._count_applied(events, results, readings, skew_ms, counts_lag)
        return results

    def command(self, events: Sequence[Event], group: Sequence[Step], now_ms: int) -> tuple[Any, ...]:
        """What is sent for one of the `groups` of these events."""
        arguments: list[object] = [bytes(len(indexes) for _, indexes in group)]
        for _, indexes in group:
            for index in indexes:
                arguments += _sent(events[index])
        return self._command(library.NAME, [user_id for user_id, _ in group], now_ms, *arguments)

    def _command(self, function: str, user_ids: Iterable[str], now_ms: int, *arguments: object) -> tuple[Any, ...]:
        keys = (*map(self._keys.user, user_ids), *self._shared)
        return ("FCALL", function, len(keys), *keys, *self._options, now_ms, *arguments)

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
        function, asked_ms = f"{library.NAME}_review", self._now_ms()
        commands = (self._command(function, [each], asked_ms, until_ms, now_ms) for each in user_ids)
        replies = self._call(commands, read_reviewed)
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

    def _call(self, commands: Iterable[tuple[Any, ...]], read: Callable[[list[Any]], R]) -> list[R | Exception]:
        """The reply to each command, or its error if only its users are the cause."""
        sent: list[tuple[Any, ...]] = []

        def noted() -> Iterator[tuple[Any, ...]]:
            for command in commands:
                sent.append(command)
                yield command

        with _unavailable():
            replies = self._send(noted())
            if any(is_missing_function(reply) for reply in replies):
                try:
                    self.prepare()
                except SettingsError as error:  # found out late: the batch at hand must not fail because of it
                    raise Unavailable(str(error)) from error
                replies = self._send(sent)
            results = [reply if isinstance(reply, Exception) else read(reply) for reply in replies]
            if self._outbox:
                done = [
                    (command[3], each.on_cluster)
                    for command, each in zip(sent, results, strict=True)
                    if not isinstance(each, Exception)
                ]
                self._outbox.carry_out({key: todo for key, todo in done if todo})
            failures = list(chain.from_iterable(map(_errors, results)))
            for failure in failures:
                if is_outage(failure) or is_missing_function(failure):
                    raise failure
            if failures:
                self._check_stream()
        return results

    def _send(self, commands: Iterable[tuple[Any, ...]]) -> list[Any]:
        if not self._replicas.expected:
            return exchange(self._client, pack(commands))
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


def groups(events: Sequence[Event], size: int) -> Iterator[list[Step]]:
    """The steps of each call: as few as have `size` events."""
    group: list[Step] = []
    count = 0
    for step in _steps(events):
        group.append(step)
        count += len(step[1])
        if count >= size:
            yield group
            group, count = [], 0
    if group:
        yield group


def _steps(events: Sequence[Event]) -> Iterator[Step]:
    by_user: dict[str, list[int]] = {}
    for index, event in enumerate(events):
        by_user.setdefault(event.user_id, []).append(index)
    for user_id, indexes in by_user.items():
        for start in range(0, len(indexes), STEP_EVENTS):
            yield user_id, indexes[start : start + STEP_EVENTS]


def _results(group: Sequence[Step], reply: Applied | Exception) -> Iterator[tuple[int, Outcome | Poison]]:
    """What became of the events of one call, by their indexes."""
    if isinstance(reply, Exception):
        poison = Poison(_reason(reply))
        yield from ((index, poison) for _, indexes in group for index in indexes)
        return
    letters, errors = iter(reply.letters), iter(reply.errors)
    for _, indexes in group:
        failed: Poison | None = None
        for index, letter in zip(indexes, letters, strict=False):  # the others are of the next users
            if letter == FAILED:
                failed = failed or Poison(_reason(next(errors)))
            yield index, failed or _OUTCOMES[letter]


def _errors(result: Applied | Reviewed | Exception) -> Sequence[Exception]:
    if isinstance(result, Applied):
        return result.errors
    return [result] if isinstance(result, Exception) else []


@contextmanager
def _unavailable() -> Iterator[None]:
    try:
        yield
    except RedisError as error:
        raise Unavailable(f"presence cannot be written: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What the server says, without the name and the line of our function, which would help nobody."""
    return str(error).partition(" script: ")[0]
