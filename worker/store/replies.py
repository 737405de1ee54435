"""The replies of the functions in lua/, as types; no other module knows the positions in their lists."""

from functools import lru_cache
from typing import Any, Literal, NamedTuple

from redis.exceptions import ResponseError

OutcomeName = Literal["applied", "duplicate", "stale"]

#: How a platform is read if one batch names it both online and offline.
Reading = Literal["kept", "closed"]

_NAMES: dict[int, OutcomeName] = {ord("a"): "applied", ord("d"): "duplicate", ord("s"): "stale"}
_READINGS: dict[int, Reading] = {ord("k"): "kept", ord("c"): "closed"}


class OnCluster(NamedTuple):
    """What is left to do on a Cluster.

    outbox: changes that are not on the stream, as JSON, one a line. lease_ends_at_ms: the end of the user's earliest
    lease, Unix milliseconds; None if no session has one.
    """

    outbox: bytes
    lease_ends_at_ms: int | None


class Applied(NamedTuple):
    """The reply to one call that applied a user's events. outcomes: one for each. flipped: the status changed.

    readings: how each platform was read that one batch names both online and offline.
    """

    outcomes: tuple[OutcomeName, ...]
    readings: tuple[Reading, ...]
    flipped: bool
    on_cluster: OnCluster | None


class Reviewed(NamedTuple):
    """The reply to one call that reviewed a user. expired: how many leases of sessions ran out."""

    expired: int
    flipped: bool
    on_cluster: OnCluster | None


def read_applied(reply: list[Any]) -> Applied:
    return Applied(*_said(reply[0]), _flipped(reply), _on_cluster(reply))


def read_reviewed(reply: list[Any]) -> Reviewed:
    return Reviewed(int(reply[0]), _flipped(reply), _on_cluster(reply))


@lru_cache(1000)  # most are one letter
def _said(letters: bytes) -> tuple[tuple[OutcomeName, ...], tuple[Reading, ...]]:
    names = tuple(_NAMES[letter] for letter in letters if letter in _NAMES)
    return names, tuple(_READINGS[letter] for letter in letters[len(names) :])


def is_missing_function(error: object) -> bool:
    """Also true if the server knows no functions at all; loading one then says so."""
    text = str(error) if isinstance(error, ResponseError) else ""
    return "Function not found" in text or "unknown command" in text


def _flipped(reply: list[Any]) -> bool:
    return len(reply) > 1 and reply[1] != b""


def _on_cluster(reply: list[Any]) -> OnCluster | None:
    return OnCluster(reply[2], int(reply[3]) if reply[3] else None) if len(reply) > 2 else None
