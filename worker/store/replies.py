"""The replies of the functions in lua/, as types; no other module knows the positions in their lists."""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from redis.exceptions import ResponseError

OutcomeName = Literal["applied", "duplicate", "stale"]
#: How a platform is read if one batch names it both online and offline.
Reading = Literal["kept", "closed"]

#: The letter of each.
READINGS: dict[str, Reading] = {"k": "kept", "c": "closed"}
_NAMES: dict[str, OutcomeName] = {"a": "applied", "d": "duplicate", "s": "stale"}
#: The letter instead, if the event is the last of a step in which one batch named a platform both online and offline.
_AMBIGUOUS = {"a": "x", "d": "y", "s": "z"}


def _letters() -> Iterator[tuple[str, tuple[OutcomeName, bool, bool]]]:
    for letter, name in _NAMES.items():
        for each, is_ambiguous in ((letter, False), (_AMBIGUOUS[letter], True)):
            yield each, (name, False, is_ambiguous)
            yield each.upper(), (name, True, is_ambiguous)


#: What each letter says of an event: its outcome, whether the status of its user changed by its step, and whether a
#: batch of the step named a platform both online and offline.
LETTERS = dict(_letters())
#: The letter of an event of a user whose step failed.
FAILED = "e"


class OnCluster(NamedTuple):
    """What is left to do on a Cluster.

    outbox: changes that are not on the stream, as JSON, one a line. lease_ends_at_ms: the end of the user's earliest
    lease, Unix milliseconds; None if no session has one.
    """

    outbox: bytes
    lease_ends_at_ms: int | None


class Applied(NamedTuple):
    """The reply to one call that applied events.

    letters: one for each event. readings: a letter for each platform that one batch names both online and offline.
    errors: one for each user whose step failed.
    """

    letters: str
    readings: str
    errors: list[Exception]
    on_cluster: OnCluster | None


class Reviewed(NamedTuple):
    """The reply to one call that reviewed a user. expired: how many leases of sessions ran out."""

    expired: int
    flipped: bool
    on_cluster: OnCluster | None


def read_applied(reply: list[Any]) -> Applied:
    letters, readings, *more = reply
    is_on_cluster = more and not isinstance(more[0], Exception)
    errors, on_cluster = ([], _on_cluster(*more)) if is_on_cluster else (more, None)
    return Applied(letters.decode(), readings.decode(), errors, on_cluster)


def read_reviewed(reply: list[Any]) -> Reviewed:
    expired, flipped, *more = reply
    return Reviewed(expired, bool(flipped), _on_cluster(*more) if more else None)


def is_missing_function(error: object) -> bool:
    """Also true if the server knows no functions at all; loading one then says so."""
    text = str(error) if isinstance(error, ResponseError) else ""
    return "Function not found" in text or "unknown command" in text


def _on_cluster(outbox: bytes, lease_ends: bytes) -> OnCluster:
    return OnCluster(outbox, int(lease_ends) if lease_ends else None)
