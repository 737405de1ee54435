"""The counters in the hash `presence-stats`: what workers add to it, and how it is read."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate

OUTCOMES = ("applied", "duplicate", "stale", "failed")
READINGS = ("kept", "closed")

#: Upper bounds, in milliseconds, of the time from an event's receipt until it is applied; beyond the last is "inf".
LAG_BOUNDS_MS = (
    *(5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000),
    *(10_000, 30_000, 60_000, 120_000, 300_000, 600_000, 1_800_000, 3_600_000),
)
_LAG_FIELDS = tuple(f"lag:{bound}" for bound in (*LAG_BOUNDS_MS, "inf"))
_LAG_SUM = "lag_ms"


def lag_counts(received_at: Iterable[int], now_ms: int) -> dict[str, int]:
    """What to add to the hash for events applied now; received_at, now_ms: Unix milliseconds.

    Two clocks are compared, the receiver's and the worker's: a lag below 0 counts as 0.
    """
    counts: dict[str, int] = {}
    total = 0
    for received in received_at:
        lag = now_ms - received if now_ms > received else 0
        name = _LAG_FIELDS[bisect_left(LAG_BOUNDS_MS, lag)]
        counts[name] = counts.get(name, 0) + 1
        total += lag
    return {**counts, _LAG_SUM: total}


@dataclass(frozen=True, slots=True)
class Stats:
    """What the hash says. lags: how many events fall under each bound, the last number is beyond all; not cumulated.

    clock_ahead: events from gateways whose clock was ahead (worker/clock_ahead.py); one whose batch is applied twice
    counts twice. ambiguous: how batches were read that name a platform of a user both online and offline.
    """

    outcomes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    changes: int = 0
    users_online: int = 0
    lags: tuple[int, ...] = (0,) * len(_LAG_FIELDS)
    lag_seconds: float = 0.0
    clock_ahead: int = 0
    ambiguous: dict[str, int] = field(default_factory=lambda: dict.fromkeys(READINGS, 0))

    @property
    def events(self) -> int:
        return sum(self.outcomes.values())

    @classmethod
    def of(cls, fields: Mapping[bytes, bytes]) -> "Stats":
        """Reads the hash; a missing field is 0. Raises ValueError for one that is not a number."""
        values = {name.decode(): value for name, value in fields.items()}

        def number(name: str) -> int:
            return int(values.get(name, 0))

        return cls(
            {name: number(name) for name in OUTCOMES},
            number("changes"),
            max(0, number("users_online")),
            tuple(map(number, _LAG_FIELDS)),
            number(_LAG_SUM) / 1000,
            number("clock_ahead"),
            {name: number(f"ambiguous_{name}") for name in READINGS},
        )

    def lag_below(self, share: float, before: "Stats | None" = None) -> float | None:
        """Seconds below which the lag of this share of the events lay, of all events or of those since `before`.

        None if there were none; infinite beyond the last bound. A server that was restarted may count fewer
        than before.
        """
        then = before.lags if before else (0,) * len(self.lags)
        lags = [max(0, count - former) for count, former in zip(self.lags, then, strict=True)]
        wanted = share * sum(lags)
        if not wanted:
            return None
        bounds = (*LAG_BOUNDS_MS, float("inf"))
        return next(bound for bound, so_far in zip(bounds, accumulate(lags), strict=True) if so_far >= wanted) / 1000
