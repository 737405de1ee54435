"""What was heard of one gateway process, and of those that had its address and pid before it."""

from dataclasses import dataclass, field
from itertools import combinations

from shared.gateways.batches import Heard, Witness
from shared.gateways.run import Run

#: A process is silent after so many times its usual interval, and this long at least;
SILENT_INTERVALS = 20
SILENT_LEAST_MS = 60_000
#: or after this long, whatever was usual.
SILENT_MS = 21 * 60_000
#: What is usual is seen from this long before the silence.
USUAL_MINUTES = 10
MOST_RUNS = 4
#: Some of them may have left meanwhile.
MOST_WITNESSES = 16
#: With fewer numbers than this, what overlaps another run is a callback that came very late, and no run.
RUN_LEAST = 3


@dataclass(slots=True)
class Process:
    """Times are Unix milliseconds by the clock of the queue's server.

    online, offline: whether such callbacks came. runs: those that ended before, and the one that goes on, which is the
    last. minutes: how many numbers were first heard in each minute, of the last ones. witnesses: some users whom it
    called online, the last one last.
    """

    online: bool = False
    offline: bool = False
    runs: list[Run] = field(default_factory=list)
    minutes: dict[int, int] = field(default_factory=dict)
    witnesses: list[Witness] = field(default_factory=list)

    def hear(self, number: int, batch: Heard, now_ms: int) -> None:
        """Takes one batch, or a part of it, that a worker hears of now. What was heard before changes nothing."""
        self.online |= "online" in batch.kinds
        self.offline |= "offline" in batch.kinds
        run = next((run for run in reversed(self.runs) if run.fits(number, batch.seq)), None)
        is_new = True if run is None else run.add(number, batch, now_ms)
        if run is None:
            self.runs.append(Run([(number, number, now_ms)], batch.seq, batch.seq, batch.at_ms, batch.at_ms))
        if len(self.runs) > 1:
            self.runs = sorted(self.runs, key=lambda run: run.last_at_ms)[-MOST_RUNS:]
        if is_new:
            self._count(batch.at_ms)
        if batch.witnesses:
            others = [each for each in self.witnesses if each not in batch.witnesses]
            self.witnesses = [*others, *batch.witnesses][-MOST_WITNESSES:]

    def _count(self, at_ms: int) -> None:
        minute = at_ms // 60_000
        self.minutes[minute] = self.minutes.get(minute, 0) + 1
        if len(self.minutes) > USUAL_MINUTES + 1:
            del self.minutes[min(self.minutes)]

    @property
    def first_at_ms(self) -> int:
        return min(run.first_at_ms for run in self.runs)

    @property
    def last_at_ms(self) -> int:
        return max(run.last_at_ms for run in self.runs)

    @property
    def heard(self) -> int:
        return sum(run.heard for run in self.runs)

    @property
    def true_runs(self) -> list[Run]:
        """Without what only a callback that came very late seems to be one."""
        others = [run for run in self.runs if run.heard >= RUN_LEAST]
        return [run for run in self.runs if run in others or not any(run.overlaps(other) for other in others)]

    @property
    def is_two(self) -> bool:
        """Two processes with one address and one pid, such as containers behind one address: both go on at one time."""
        return any(one.overlaps(other) for one, other in combinations(self.true_runs, 2))

    @property
    def tells_all(self) -> bool:
        """False if only one kind of callback is enabled: numbers are missing as a matter of course."""
        return self.online and self.offline and not self.is_two

    def lost(self, now_ms: int) -> int:
        """Of all its runs; 0 if nothing can be concluded."""
        return sum(run.lost(now_ms) for run in self.runs) if self.tells_all else 0

    @property
    def usual_interval_ms(self) -> float:
        """Between two batches, in the last ten minutes before it was last heard."""
        last = self.last_at_ms // 60_000
        heard = sum(count for minute, count in self.minutes.items() if last - minute < USUAL_MINUTES)
        return USUAL_MINUTES * 60_000 / max(heard, 1)

    def is_silent(self, now_ms: int) -> bool:
        silence = now_ms - self.last_at_ms
        return silence > SILENT_MS or silence > max(SILENT_LEAST_MS, SILENT_INTERVALS * self.usual_interval_ms)
