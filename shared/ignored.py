"""The newest events that changed nothing: stale or duplicate, each with the time at which a worker found that out.

They explain why a user is shown in some way (`presence why`), and are kept in a stream on presence's server. Nothing
is written for an event that was applied. The stream is bounded, so the events of other users may push out one user's.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError
from redis.client import Pipeline

from shared.events import EVENT, Event, encode

IgnoredName = Literal["duplicate", "stale"]

#: About how many are kept, some 150 bytes each.
KEPT_MOST = 50_000
#: How many of one batch are kept: a large batch that is delivered again must not push out all others.
TOGETHER_MOST = 100
#: All are forgotten this long after the last one.
KEPT_SECONDS = 86_400


@dataclass(frozen=True, slots=True)
class Ignored:
    """One event that changed nothing. at_ms: when a worker found that out, Unix milliseconds of presence's server."""

    outcome: IgnoredName
    event: Event
    at_ms: int


def note(pipeline: Pipeline, stream: str, ignored: Iterable[tuple[IgnoredName, Event]]) -> None:
    """Adds the commands that write these down, the stale ones first: they say more than duplicates."""
    some = sorted(ignored, key=lambda each: each[0] == "duplicate")[:TOGETHER_MOST]
    for outcome, event in some:
        fields: dict[Any, Any] = {"outcome": outcome, "event": encode(event)}
        pipeline.xadd(stream, fields, maxlen=KEPT_MOST, approximate=True)
    if some:
        pipeline.expire(stream, KEPT_SECONDS)


def read(entry_id: bytes, fields: dict[bytes, bytes]) -> Ignored | None:
    """The event of one entry, None if another release wrote something else."""
    outcome: Any = fields.get(b"outcome", b"").decode(errors="replace")
    if outcome not in ("duplicate", "stale"):
        return None
    try:
        event = EVENT.validate_json(fields.get(b"event", b""))
    except ValidationError:
        return None
    return Ignored(outcome, event, int(entry_id.partition(b"-")[0]))
