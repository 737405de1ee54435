"""The presence store: events in, outcomes out, one atomic step on the server for each event.

The step is a Redis Function (FUNCTION LOAD, FCALL) rather than a script (EVALSHA): functions persist and
replicate, so neither a restart nor a failover answers a full pipeline with NOSCRIPT. The price is Redis 7.0.
"""

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal, TypeVar, get_args

from redis import Redis
from redis.exceptions import RedisError, ResponseError

from shared.errors import PresenceError, SettingsError, Unavailable
from shared.events import Event
from shared.observe.counters import lag_counts
from shared.redis.client import is_outage
from shared.redis.cluster import Cluster
from shared.settings import Settings
from worker.store.outbox import Outbox
from worker.store.replicas import Replicas

PIPELINE_EVENTS = 1000

log = logging.getLogger("worker.store")

_SOURCE = files("worker.store").joinpath("presence.lua").read_text("utf-8")
# The text's own digest is in its name, so that workers of two releases can use one server during an upgrade.
_FUNCTION = "presence_" + hashlib.sha256(_SOURCE.encode()).hexdigest()[:12]
_LIBRARY = _SOURCE.replace("LIBRARY", _FUNCTION, 1).replace("'FUNCTION", f"'{_FUNCTION}")

T = TypeVar("T")
OutcomeName = Literal["applied", "duplicate", "stale"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one event. flipped: it changed the user's status."""

    name: OutcomeName
    flipped: bool = False


class Poison(PresenceError):
    """This one event cannot be applied as things stand, however healthy the server."""


class Store:
    """Presence in one Redis, or in a Redis Cluster. The client must decode nothing and retry nothing.

    Every method raises Unavailable where the server cannot do all of it just now. Some may be done then; doing it
    again is harmless.
    """

    def __init__(self, client: Redis, settings: Settings) -> None:
        self._client = client
        self._keys = settings.keys
        keys = self._keys
        self._replicas = Replicas(client)
        self._outbox = Outbox(client, settings, _FUNCTION, self._replicas) if isinstance(client, Cluster) else None
        #: What shares a step with the hash.
        self._shared = () if self._outbox else (keys.changes, keys.stats, keys.leases)
        self._options = (settings.changes_maxlen, settings.retention_seconds, settings.online_lease_seconds * 1000)

    def apply(self, events: Sequence[Event]) -> list[Outcome | Poison]:
        """Applies events, a round trip for each thousand; the result has, for each, its outcome or why it has none."""
        results: list[Outcome | Poison] = []
        for start in range(0, len(events), PIPELINE_EVENTS):
            some = events[start : start + PIPELINE_EVENTS]
            replies = self._call(_FUNCTION, self._applications(some))
            outcomes = [_read(reply) for reply in replies]
            counts: Counter[str] = Counter(each.name for each in outcomes if isinstance(each, Outcome))
            applied = (event.received_at for event, each in zip(some, outcomes, strict=True) if _is_applied(each))
            counts.update(lag_counts(applied, time.time_ns() // 1_000_000))
            self._count(counts, replies)
            results += outcomes
        return results

    def _applications(self, events: Sequence[Event]) -> Iterator[tuple[str, tuple[Any, ...]]]:
        options = self._options
        for event in events:
            yield (
                event.user_id,
                (
                    event.kind,
                    event.seq,
                    event.conn_id,
                    event.platform_id,
                    event.received_at,
                    event.command,
                    event.platform,
                    event.operation_id,
                    event.user_id,
                    *options,
                ),
            )

    def due(self, until_ms: int, most: int) -> dict[str, float]:
        """Users one of whose leases has run out at `until_ms`, and when it has: the earliest first, `most` of them."""
        with _unavailable():
            found: Any = self._client.zrange(
                self._keys.leases, "-inf", until_ms, byscore=True, offset=0, num=most, withscores=True
            )
        return {user_id.decode(errors="replace"): score for user_id, score in found}

    def review(self, user_ids: Sequence[str], until_ms: int, now_ms: int, due: dict[str, float] | None = None) -> int:
        """Closes the sessions of users whose leases have run out at `until_ms`, and says how many it closed.

        It also gives them the leases and the retention that the settings want, counted from `now_ms`, where they were
        last written under other ones. due: as `due` returned them.
        """
        arguments = ((each, (until_ms, now_ms, "", "", "", "", "", "", each, *self._options)) for each in user_ids)
        replies = self._call(f"{_FUNCTION}_review", arguments)
        expired = sum(int(reply[0]) for reply in replies if not isinstance(reply, Exception))
        self._count(Counter(expired=expired), replies)
        with _unavailable():
            if self._outbox and due:
                self._outbox.reschedule(due, user_ids, replies)
                # A session that was opened since they were reviewed left the lease that was due as it was.
                if without := [each for each, reply in zip(user_ids, replies, strict=True) if _has_no_lease(reply)]:
                    expired += self.review(without, until_ms, now_ms)
            broken = [each for each, reply in zip(user_ids, replies, strict=True) if isinstance(reply, Exception)]
            if broken and due:
                self._client.zrem(self._keys.leases, *broken)  # their keys are no hashes any more
        return expired

    def user_ids(self) -> Iterator[str]:
        """Every user, by SCAN; some of them twice."""
        with _unavailable():
            for key in self._client.scan_iter(match=self._keys.user("*"), count=PIPELINE_EVENTS):
                yield self._keys.user_id(key.decode(errors="replace"))

    def run_ids(self) -> str:
        """Which servers these are, as `INFO server` names each start of one."""
        with _unavailable():
            if isinstance(self._client, Cluster):
                self._client.refresh()  # or one that is a replica by now would be asked for ever
            return " ".join(sorted(self._at_each_server(lambda server: str(server.info("server")["run_id"]))))

    def _at_each_server(self, do: Callable[[Redis], T]) -> list[T]:
        return self._client.at_each_primary(do) if isinstance(self._client, Cluster) else [do(self._client)]

    def prepare(self) -> None:
        """Loads the functions. Raises SettingsError where the server is too old for them."""
        try:
            self._at_each_server(lambda server: server.function_load(_LIBRARY, replace=True))
        except RedisError as error:
            if "unknown command" in str(error):
                raise SettingsError(
                    "PRESENCE_REDIS_URL: the server is too old; Redis 7.0 or later is needed, or Valkey"
                ) from None
            raise Unavailable(f"presence cannot be written: {error}") from error

    def _call(self, function: str, commands: "Iterator[tuple[str, tuple[Any, ...]]]") -> list[Any]:
        """The reply to each call, or its error where that user alone is to blame."""
        prepared = [
            ("FCALL", function, 1 + len(self._shared), self._keys.user(user_id), *self._shared, *arguments)
            for user_id, arguments in commands
        ]
        with _unavailable():
            replies = self._send(prepared)
            if any(_is_missing_function(reply) for reply in replies):
                try:
                    self.prepare()
                except SettingsError as error:  # found out late: a batch in hand must not fail for it
                    raise Unavailable(str(error)) from error
                replies = self._send(prepared)
            for reply in replies:
                if isinstance(reply, Exception) and (is_outage(reply) or _is_missing_function(reply)):
                    raise reply
            if any(isinstance(reply, Exception) for reply in replies):
                self._check_stream()
            if self._outbox:
                self._outbox.carry_out([command[3] for command in prepared], replies)
        return replies

    def _send(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)  # type: ignore[no-untyped-call]
        return self._replicas.execute(pipeline)

    def _check_stream(self) -> None:
        """A stream of a wrong type would make every change look like a poison event of its own."""
        kind = self._client.type(self._keys.changes)
        if kind not in (b"stream", b"none"):
            raise Unavailable(f"the key {self._keys.changes} is no stream; rename it, changes go there")

    def count_failed(self) -> None:
        """One event has finally failed. Raises nothing: the event matters more than its being counted."""
        with suppress(RedisError):
            self._client.hincrby(self._keys.stats, "failed", 1)

    def _count(self, counts: "Counter[str]", replies: Sequence[Any]) -> None:
        counts["changes"] = sum(1 for each in replies if not isinstance(each, Exception) and len(each) > 1 and each[1])
        pipeline = self._client.pipeline(transaction=False)
        for name, count in counts.items():
            if count:
                pipeline.hincrby(self._keys.stats, name, count)
        with _unavailable():
            try:
                if pipeline:
                    pipeline.execute()
            except ResponseError as error:
                if is_outage(error):
                    raise
                log.error("the counters in %s cannot be kept: %s", self._keys.stats, error)


def _has_no_lease(reply: Any) -> bool:
    return not isinstance(reply, Exception) and not reply[3]


def _is_applied(result: "Outcome | Poison") -> bool:
    return isinstance(result, Outcome) and result.name == "applied"


@contextmanager
def _unavailable() -> Iterator[None]:
    try:
        yield
    except RedisError as error:
        raise Unavailable(f"presence cannot be written: {error}") from error


def _is_missing_function(reply: object) -> bool:
    """True too where the server knows no functions at all; loading one then says so."""
    text = str(reply) if isinstance(reply, ResponseError) else ""
    return "Function not found" in text or "unknown command" in text


_OUTCOMES: dict[tuple[bytes, bool], Outcome] = {
    (name.encode(), flipped): Outcome(name, flipped) for name in get_args(OutcomeName) for flipped in (False, True)
}


def _read(reply: Any) -> Outcome | Poison:
    if isinstance(reply, Exception):
        return Poison(str(reply).partition(" script: ")[0])  # the name of ours says nothing to anybody
    return _OUTCOMES[reply[0], len(reply) > 1 and reply[1] != b""]
