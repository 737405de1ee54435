"""What requires a comparison at once. Pure: no clock, no Redis."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter

from shared.gateways.batches import Name
from shared.gateways.view import Gateways
from shared.reports import Report

#: Receivers report once a second. If none has for this long, callbacks were lost.
AWAY_MS = 15_000


@dataclass(frozen=True, slots=True)
class Seen:
    """What was known at the last look, at_ms. lost: batches of gateways that never came. away: no receiver reported.

    gone: runs of gateway processes that have ended or are silent, each by address, pid and the time of its first event.
    late_at_ms: when a callback last came so late that a gateway may have dropped others.
    """

    at_ms: int = 0
    lost: int = 0
    gone: frozenset[tuple[str, int, int]] = frozenset()
    away: bool = False
    late_at_ms: int = 0


@dataclass(frozen=True, slots=True)
class Urgent:
    """Which users to compare at once. online: all who are shown online. gone: those whose last callback came from these
    processes. everybody: the next round must compare all of OpenIM's users, since online callbacks were lost as well.
    """

    online: bool = False
    gone: frozenset[Name] = frozenset()
    everybody: bool = False

    def __bool__(self) -> bool:
        return self.online or bool(self.gone)


SEEN: TypeAdapter[Seen] = TypeAdapter(Seen)


def look(
    before: Seen | None, gateways: Gateways, receivers: Sequence[Report], now_ms: int, *, took_over: bool = False
) -> tuple[Seen, Urgent]:
    """before: None if nobody has looked yet. took_over: whether nobody may have looked in between."""
    gone = frozenset((each.peer, each.pid, each.first_at_ms) for each in gateways.processes if each.state != "live")
    is_away = now_ms - max((each.at_ms for each in receivers), default=0) > AWAY_MS
    if before is None:
        return Seen(now_ms, gateways.lost, gone, is_away, gateways.late_at_ms), Urgent()
    was_away = before.away or (took_over and now_ms - before.at_ms > AWAY_MS)
    seen = Seen(now_ms, gateways.lost, gone, is_away, gateways.late_at_ms)
    was_late = gateways.late_at_ms > before.late_at_ms
    was_lost = gateways.lost > before.lost or was_late or (was_away and not is_away)
    return seen, Urgent(was_lost, _named(gone - before.gone), was_lost)


def _named(runs: frozenset[tuple[str, int, int]]) -> frozenset[Name]:
    return frozenset((peer, pid) for peer, pid, _ in runs)
