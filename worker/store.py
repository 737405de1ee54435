"""The presence store: events in, outcomes out, one atomic step on the server for each event.

The step is a Redis Function (FUNCTION LOAD, FCALL) rather than a script (EVALSHA): functions persist and
replicate, so neither a restart nor a failover answers a full pipeline with NOSCRIPT, and redis-py sends FCALL
through a pipeline to a Redis Cluster, which it refuses to do for EVALSHA. The price is Redis 7.0.
"""

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal, get_args

from redis import Redis
from redis.exceptions import RedisError, ResponseError

from shared.errors import PresenceError, SettingsError, Unavailable
from shared.events import Event
from shared.redis import is_outage
from shared.settings import Settings
from shared.stats import lag_counts

PIPELINE_EVENTS = 1000

log = logging.getLogger("worker.store")

_SOURCE = files("worker").joinpath("presence.lua").read_text("utf-8")
# The text's own digest is in its name, so that workers of two releases can use one server during an upgrade.
_FUNCTION = "presence_" + hashlib.sha256(_SOURCE.encode()).hexdigest()[:12]
_LIBRARY = _SOURCE.replace("LIBRARY", _FUNCTION, 1).replace("'FUNCTION'", f"'{_FUNCTION}'")

OutcomeName = Literal["applied", "duplicate", "stale"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one event. flipped: it changed the user's status."""

    name: OutcomeName
    flipped: bool = False


class Poison(PresenceError):
    """This one event cannot be applied as things stand, however healthy the server."""


class Store:
    """Presence in one Redis. The client must decode nothing and retry nothing."""

    def __init__(self, client: Redis, settings: Settings) -> None:
        self._client = client
        self._keys = settings.keys
        self._changes_maxlen = settings.changes_maxlen

    def apply(self, events: Sequence[Event]) -> list[Outcome | Poison]:
        """Applies events, a round trip for each thousand; the result has, for each, its outcome or why it has none.

        Raises Unavailable where the server could not apply them all; some may have been. Applying an event
        again is harmless. Raises SettingsError where the server is too old.
        """
        results: list[Outcome | Poison] = []
        for start in range(0, len(events), PIPELINE_EVENTS):
            results += self._apply(events[start : start + PIPELINE_EVENTS])
        return results

    def _apply(self, events: Sequence[Event]) -> list[Outcome | Poison]:
        try:
            replies = self._call(events)
            if any(_is_missing_function(reply) for reply in replies):
                self.prepare()
                replies = self._call(events)
            for reply in replies:
                if isinstance(reply, Exception) and (is_outage(reply) or _is_missing_function(reply)):
                    raise Unavailable(f"presence cannot be written: {reply}") from reply
            results = [_read(reply) for reply in replies]
            if any(isinstance(result, Poison) for result in results):
                self._check_stream()
            self._count(results, events)
        except RedisError as error:
            raise Unavailable(f"presence cannot be written: {error}") from error
        return results

    def _call(self, events: Sequence[Event]) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        changes, maxlen, user_key = self._keys.changes, self._changes_maxlen, self._keys.user
        for event in events:
            pipeline.execute_command(  # type: ignore[no-untyped-call]
                "FCALL",
                _FUNCTION,
                2,
                user_key(event.user_id),
                changes,
                event.kind,
                event.seq,
                event.conn_id,
                event.platform_id,
                event.received_at,
                event.command,
                event.platform,
                event.operation_id,
                event.user_id,
                maxlen,
            )
        return pipeline.execute(raise_on_error=False)

    def prepare(self) -> None:
        """Loads the function. Raises Unavailable, and SettingsError where the server is too old for it."""
        try:
            self._client.function_load(_LIBRARY, replace=True)
        except RedisError as error:
            if "unknown command" in str(error):
                raise SettingsError(
                    "PRESENCE_REDIS_URL: the server is too old; Redis 7.0 or later is needed, or Valkey"
                ) from None
            raise Unavailable(f"presence cannot be written: {error}") from error

    def _check_stream(self) -> None:
        """A stream of a wrong type would make every change look like a poison event of its own."""
        kind = self._client.type(self._keys.changes)
        if kind not in (b"stream", b"none"):
            raise Unavailable(f"the key {self._keys.changes} is no stream; rename it, changes go there")

    def count_failed(self) -> None:
        """One event has finally failed. Raises nothing: the event matters more than its being counted."""
        with suppress(RedisError):
            self._client.hincrby(self._keys.stats, "failed", 1)

    def _count(self, results: Sequence[Outcome | Poison], events: Sequence[Event]) -> None:
        counts: Counter[str] = Counter(result.name for result in results if isinstance(result, Outcome))
        counts["changes"] = sum(result.flipped for result in results if isinstance(result, Outcome))
        applied = (event.received_at for event, result in zip(events, results, strict=True) if _is_applied(result))
        counts.update(lag_counts(applied, time.time_ns() // 1_000_000))
        pipeline = self._client.pipeline(transaction=False)
        for name, count in counts.items():
            if count:
                pipeline.hincrby(self._keys.stats, name, count)
        try:
            if pipeline:
                pipeline.execute()
        except ResponseError as error:
            if is_outage(error):
                raise
            log.error("the counters in %s cannot be kept: %s", self._keys.stats, error)


def _is_applied(result: "Outcome | Poison") -> bool:
    return isinstance(result, Outcome) and result.name == "applied"


def _is_missing_function(reply: object) -> bool:
    """True too where the server knows no functions at all; loading one then says so."""
    text = str(reply) if isinstance(reply, ResponseError) else ""
    return "Function not found" in text or "unknown command" in text


_OUTCOMES: dict[tuple[bytes, bool], Outcome] = {
    (name.encode(), flipped): Outcome(name, flipped) for name in get_args(OutcomeName) for flipped in (False, True)
}


def _read(reply: Any) -> Outcome | Poison:
    if isinstance(reply, Exception):
        return Poison(str(reply))
    return _OUTCOMES[reply[0], len(reply) > 1]
