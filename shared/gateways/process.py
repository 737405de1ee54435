"""What came from one gateway process, and from those that had its address and pid before it."""

from dataclasses import dataclass, field
from itertools import combinations

from shared.gateways.batches import Heard, Witness
from shared.gateways.run import Run

#: A process is silent after this many times its usual interval, but not before SILENT_LEAST_MS,
SILENT_INTERVALS = 20
SILENT_LEAST_MS = 60_000
#: and in any case after this time.
SILENT_MS = 21 * 60_000
#: The usual interval is that of this time before the silence.
USUAL_MINUTES = 10
MOST_RUNS = 4
#: Several, because some of them may have left meanwhile.
MOST_WITNESSES = 16
#: If something with fewer numbers overlaps another run, it is not a run but a callback that came very late.
RUN_LEAST = 3
#: A gateway drops a callback that finds no place in its queue within 3 s (openimsdk/tools, mq/memamq/queue.go). The
#: hundred in the queue have then waited for as long, so some callbacks come this much later than others do. The rest of
#: their batches comes: the numbers show nothing.
LATE_MS = 2_900
#: None waits for longer: a hundred, two at a time, 5 s each. What is later was not stamped by a clock.
LATEST_MS = 300_000


@dataclass(slots=True)
class Process:
    """One gateway process. Times are Unix milliseconds by the clock of the queue's server.

    online, offline: whether such callbacks came. runs: those that have ended and, as the last, the current one.
    minutes: for each of the last minutes, how many new numbers came in it. witnesses: some users that the process
    called online, the latest one last. quickest: for each of the last minutes, the shortest time from the stamp of a
    callback to its receipt. late_at_ms: when the last one came that had waited at the gateway for so long that others
    may have been dropped; 0 if none has.
    """

    online: bool = False
    offline: bool = False
    runs: list[Run] = field(default_factory=list)
    minutes: dict[int, int] = field(default_factory=dict)
    witnesses: list[Witness] = field(default_factory=list)
    quickest: dict[int, int] = field(default_factory=dict)
    late_at_ms: int = 0

    def hear(self, number: int, batch: Heard, now_ms: int) -> None:
        """Takes a batch, or a part of it, that a worker gets now. What came before changes nothing."""
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
        self._time(batch)
        if batch.witnesses:
            others = [each for each in self.witnesses if each not in batch.witnesses]
            self.witnesses = [*others, *batch.witnesses][-MOST_WITNESSES:]

    def _time(self, batch: Heard) -> None:
        minute = batch.at_ms // 60_000
        self.quickest[minute] = min(self.quickest.get(minute, batch.quickest_ms), batch.quickest_ms)
        if len(self.quickest) > USUAL_MINUTES + 1:
            del self.quickest[min(self.quickest)]
        if LATE_MS <= batch.slowest_ms - min(self.quickest.values()) < LATEST_MS:
            self.late_at_ms = max(self.late_at_ms, batch.at_ms)

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
        """The runs, without those that a callback which came very late only seems to make."""
        others = [run for run in self.runs if run.heard >= RUN_LEAST]
        return [run for run in self.runs if run in others or not any(run.overlaps(other) for other in others)]

    @property
    def is_two(self) -> bool:
        """Whether these are two processes with one address and one pid, such as containers: their runs overlap."""
        return any(one.overlaps(other) for one, other in combinations(self.true_runs, 2))

    @property
    def tells_all(self) -> bool:
        """False if only one kind of callback is enabled: missing numbers are then normal."""
        return self.online and self.offline and not self.is_two

    def lost(self, now_ms: int) -> int:
        """How many numbers of all its runs never came; 0 if nothing can be concluded."""
        return sum(run.lost(now_ms) for run in self.runs) if self.tells_all else 0

    @property
    def usual_interval_ms(self) -> float:
        """The time between two batches, in the ten minutes before its last callback."""
        last = self.last_at_ms // 60_000
        heard = sum(count for minute, count in self.minutes.items() if last - minute < USUAL_MINUTES)
        return USUAL_MINUTES * 60_000 / max(heard, 1)

    def is_silent(self, now_ms: int) -> bool:
        silence = now_ms - self.last_at_ms
        return silence > SILENT_MS or silence > max(SILENT_LEAST_MS, SILENT_INTERVALS * self.usual_interval_ms)
