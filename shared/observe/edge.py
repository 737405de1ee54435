"""What came to a receiver's edge lately: the newest callback of each kind, and what was refused, reason by reason.

All times are Unix milliseconds by the receiver's clock.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class LastCallback:
    """The newest of its kind that was taken. peer: whose address it came from."""

    command: str
    at_ms: int
    peer: str


@dataclass(frozen=True, slots=True)
class RefusedLately:
    """Refusals for one reason. detail, peer: of the last one. count: since `since_ms`.

    probe: True for what no OpenIM sends, such as a GET; it says nothing about OpenIM.
    """

    status: int
    reason: str
    detail: str
    peer: str
    count: int
    since_ms: int
    at_ms: int
    probe: bool = False

    def __str__(self) -> str:
        return f"{self.status} {self.reason}" + (f" ({self.detail})" if self.detail else "")


def newest_callbacks(callbacks: Iterable[LastCallback]) -> tuple[LastCallback, ...]:
    """One of each kind, the newest first."""
    kinds = {each.command: each for each in sorted(callbacks, key=lambda each: each.at_ms)}
    return tuple(sorted(kinds.values(), key=lambda each: -each.at_ms))


def added_up(refusals: Iterable[RefusedLately]) -> tuple[RefusedLately, ...]:
    """One for each reason, what OpenIM may have sent before probes, the newest first."""
    reasons: dict[tuple[int, str, bool], RefusedLately] = {}
    for each in sorted(refusals, key=lambda each: each.at_ms):
        key = each.status, each.reason, each.probe
        if before := reasons.get(key):
            since_ms = min(before.since_ms, each.since_ms)
            reasons[key] = replace(each, count=before.count + each.count, since_ms=since_ms)
        else:
            reasons[key] = each
    return tuple(sorted(reasons.values(), key=lambda each: (each.probe, -each.at_ms)))


def of_openim_unheard(callbacks: Iterable[LastCallback], refusals: Iterable[RefusedLately]) -> list[RefusedLately]:
    """Refusals that show that OpenIM is not heard: nothing was ever taken, or nothing since from a peer that was.

    A stranger's refusals do not count while callbacks are taken, and neither does a single odd callback.
    """
    newest = {each.peer: each.at_ms for each in sorted(callbacks, key=lambda each: each.at_ms)}
    return [
        each
        for each in refusals
        if not each.probe
        and each.status != 503  # the journal's trouble says more
        and (not newest or (each.count >= 3 and each.since_ms > newest.get(each.peer, each.at_ms)))
    ]
