"""What `presence status` and the page say of one reading: whether all is well, and how fast events go through."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from shared.observe import health
from shared.observe.counters import Stats
from shared.observe.readiness import Readiness
from shared.observe.snapshot import Snapshot
from shared.settings import Settings, without_password


class Status:
    """One reading, and what has changed since the previous one.

    before: the previous one, None if there is none. local: what a receiver on this machine says, None if it says
    nothing; silent: why.
    """

    def __init__(
        self,
        config: Settings,
        snapshot: Snapshot,
        before: Snapshot | None,
        local: Readiness | None,
        silent: Sequence[str] = (),
    ) -> None:
        self.config = config
        self.snapshot = snapshot
        self.local = local
        self.coded_problems = health.coded_problems(snapshot, config, local)
        self.problems = [*silent, *(each.text for each in self.coded_problems)]
        self.notes = health.notes(snapshot)
        self.before = before.presence.known_stats if before else None
        self._seconds = max(1, snapshot.at_ms - before.at_ms) / 1000 if before else 0.0

    @property
    def stats(self) -> Stats | None:
        return self.snapshot.presence.known_stats

    def _rate(self, of: Callable[[Stats], int]) -> float | None:
        """How many per second; None if two readings are not known."""
        if self.before is None or self.stats is None:
            return None
        return max(0, of(self.stats) - of(self.before)) / self._seconds

    @property
    def rates(self) -> dict[str, float | None]:
        return {"events": self._rate(lambda stats: stats.events), "changes": self._rate(lambda stats: stats.changes)}

    def as_json(self) -> dict[str, Any]:
        """Times in Unix milliseconds, sizes in bytes; null if unknown. Lags are bounds of the histogram."""
        queue, presence = self.snapshot.queue, self.snapshot.presence
        knows_queue, stats = not queue.server.error, self.stats
        return {
            "healthy": not self.problems,
            "problems": self.problems,
            "notes": self.notes,
            "at": self.snapshot.at_ms,
            "receiver_here": self.local.as_json() if self.local else None,
            "receivers": [asdict(each) for each in queue.receivers] if knows_queue else None,
            "workers": [asdict(each) for each in queue.workers] if knows_queue else None,
            "gateways": [asdict(each) for each in queue.gateways.processes] if knows_queue else None,
            "reconcile": asdict(queue.ledger) if knows_queue else None,
            "queue": {name: getattr(queue, name) for name in ("jobs", "oldest_ms", "running", "retrying", "failed")}
            if knows_queue
            else None,
            "rates": self.rates,
            "lag_seconds": self._lags(None),
            "lag_seconds_now": self._lags(self.before) if self.before and stats else None,
            "events": stats.outcomes if stats else None,
            "changes": stats.changes if stats else None,
            "clock_ahead": stats.clock_ahead if stats else None,
            "users_online": stats.users_online if stats else None,
            "last_change": next(iter(presence.last_changes), None),
            "redis": {
                "queue": {"url": without_password(self.config.queue_url), **asdict(queue.server)},
                "presence": {"url": without_password(self.config.redis_url), **asdict(presence.server)},
            },
        }

    def _lags(self, before: Stats | None) -> dict[str, float | None]:
        shares = {"p50": 0.5, "p99": 0.99}
        return {
            name: _finite(self.stats.lag_below(share, before)) if self.stats else None for name, share in shares.items()
        }


def _finite(seconds: float | None) -> float | None:
    """None for infinity, which JSON lacks."""
    return None if seconds == float("inf") else seconds
