"""What OpenIM did not tell: its gateway processes, and batches of callbacks that never came. Pure: no clock, no Redis.

A gateway of OpenIM 3.8.2 and later numbers its batches: operationID `p_<pid>_<n>` (open-im-server,
internal/msggateway/online.go). Several callbacks, of several users, have one number. Several receivers and workers see
parts of one sequence, so what is heard is put together in one place, whatever the order in which it comes.

Times are Unix milliseconds, by the receivers' clocks; seqs are the gateway's.
"""

import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from shared.events import Event, Kind

#: A number that has not come so long after a higher one was lost.
LOST_MS = 15_000
#: A process is silent after so many times its usual interval, and this long at least;
SILENT_INTERVALS = 20
SILENT_LEAST_MS = 60_000
#: or after this long, whatever was usual.
SILENT_MS = 21 * 60_000
#: What is usual is seen from this long before the silence.
USUAL_MINUTES = 10
#: Processes that were not heard of for so long are forgotten; so is whatever was heard first, past this many of them.
KEPT_MS = 24 * 3_600_000
MOST_PROCESSES = 1000
#: A sequence of numbers: how far apart two clocks, or two receivers, may make its events look; how many numbers lie
#: between two that are in order, beside those that a second brings at the most.
ORDER_MS = 15_000
ORDER_NUMBERS = 50
NUMBERS_A_SECOND = 50
#: Of one sequence, stretches without a gap; of one process, sequences.
MOST_STRETCHES = 64
MOST_RUNS = 4

State = Literal["live", "silent", "restarted"]
_BATCH = re.compile(r"p_(\d{1,10})_(\d{1,15})", re.ASCII)


@dataclass(slots=True)
class Run:
    """Numbers of one process that are one sequence.

    stretches: [first number, last number, when its first event was received], in order, with gaps between them.
    first_seq, last_seq: of its lowest and its highest number. dropped: numbers in gaps that are forgotten.
    """

    stretches: list[list[int]]
    first_seq: int
    last_seq: int
    heard: int = 1
    dropped: int = 0

    @property
    def low(self) -> int:
        return self.stretches[0][0]

    @property
    def high(self) -> int:
        return self.stretches[-1][1]

    def fits(self, number: int, seq: int) -> bool:
        """Whether the number can belong to this sequence, by the time at which the gateway sent it."""
        if number > self.high:
            apart, numbers = seq - self.last_seq, number - self.high
        elif number < self.low:
            apart, numbers = self.first_seq - seq, self.low - number
        else:
            return self.first_seq - ORDER_MS <= seq <= self.last_seq + ORDER_MS
        return apart >= -ORDER_MS and numbers <= ORDER_NUMBERS + max(apart, 0) * NUMBERS_A_SECOND // 1000

    def add(self, number: int, seq: int, at_ms: int) -> bool:
        """False where the number was heard before."""
        if number > self.high:
            self.last_seq = max(seq, self.last_seq)
        elif number < self.low:
            self.first_seq = min(seq, self.first_seq)
        index = bisect_right(self.stretches, number, key=lambda stretch: stretch[0])
        before = self.stretches[index - 1] if index else None
        if before and number <= before[1]:
            before[2] = min(before[2], at_ms)
            return False
        self.heard += 1
        after = self.stretches[index] if index < len(self.stretches) else None
        new = [number, number, at_ms]
        if before and before[1] + 1 == number:
            self.stretches.remove(before)
            new = [before[0], number, min(before[2], at_ms)]
        if after and after[0] - 1 == number:
            self.stretches.remove(after)
            new = [new[0], after[1], min(new[2], after[2])]
        self.stretches.insert(bisect_right(self.stretches, new[0], key=lambda stretch: stretch[0]), new)
        if len(self.stretches) > MOST_STRETCHES:
            first, second = self.stretches[:2]
            self.dropped += second[0] - first[1] - 1
            self.stretches[:2] = [[first[0], second[1], min(first[2], second[2])]]
        return True

    def lost(self, now_ms: int) -> int:
        """How many of its numbers never came."""
        missing, higher_at = 0, now_ms
        for below, above in zip(reversed(self.stretches[:-1]), reversed(self.stretches), strict=False):
            higher_at = min(higher_at, above[2])
            if now_ms - higher_at > LOST_MS:
                missing += above[0] - below[1] - 1
        return self.dropped + missing


@dataclass(slots=True)
class Process:
    """What was heard of one gateway process. minutes: numbers heard in each minute, of the last ones."""

    first_at_ms: int
    last_at_ms: int
    online: bool = False
    offline: bool = False
    runs: list[Run] = field(default_factory=list)
    minutes: dict[int, int] = field(default_factory=dict)
    most_lost: int = 0

    def hear(self, number: int, seq: int, at_ms: int, kinds: Iterable[Kind]) -> None:
        """Takes one batch, or a part of it; what was heard before changes nothing."""
        self.first_at_ms, self.last_at_ms = min(self.first_at_ms, at_ms), max(self.last_at_ms, at_ms)
        self.online |= "online" in kinds
        self.offline |= "offline" in kinds
        fitting = [run for run in self.runs if run.fits(number, seq)]
        if fitting:
            is_new = max(fitting, key=lambda run: run.last_seq).add(number, seq, at_ms)
        else:
            is_new = True
            self.runs = sorted([*self.runs, Run([[number, number, at_ms]], seq, seq)], key=lambda run: run.last_seq)
            self.runs = self.runs[-MOST_RUNS:]
        if is_new:
            minute = at_ms // 60_000
            self.minutes[minute] = self.minutes.get(minute, 0) + 1
            for old in sorted(self.minutes)[: -USUAL_MINUTES - 1]:
                del self.minutes[old]
        if self.tells_all:  # of two processes that is known by then
            self.most_lost = max(self.most_lost, self.lost(self.last_at_ms - 4 * ORDER_MS))

    @property
    def heard(self) -> int:
        return sum(run.heard for run in self.runs)

    def lost(self, now_ms: int) -> int:
        return sum(run.lost(now_ms) for run in self.runs)

    @property
    def is_two(self) -> bool:
        """Two processes with one address and one pid: two of its sequences go on at the same time."""
        later = max((run.first_seq for run in self.runs), default=0)
        return any(run.first_seq < later and run.last_seq > later + ORDER_MS for run in self.runs)

    @property
    def tells_all(self) -> bool:
        """False where only one kind of callback is enabled: numbers are missing as a matter of course."""
        return self.online and self.offline and not self.is_two

    @property
    def usual_interval_ms(self) -> float:
        """Between two batches, in the last ten minutes in which it was heard."""
        last = self.last_at_ms // 60_000
        heard = sum(count for minute, count in self.minutes.items() if last - minute < USUAL_MINUTES)
        return min(USUAL_MINUTES * 60_000, self.last_at_ms - self.first_at_ms) / max(heard, 1)

    def is_silent(self, now_ms: int) -> bool:
        silence = now_ms - self.last_at_ms
        return silence > SILENT_MS or silence > max(SILENT_LEAST_MS, SILENT_INTERVALS * self.usual_interval_ms)


@dataclass(frozen=True, slots=True)
class Gateway:
    """One gateway process, as people and metrics see it.

    lost: batches that never came; None where nothing can be concluded, and `note` says why. most_lost: the most that
    `lost` has been, so that it never goes back. interval_ms: what is usual between two of its batches.
    """

    peer: str
    pid: int
    state: State
    first_at_ms: int
    last_at_ms: int
    interval_ms: int
    heard: int
    lost: int | None
    most_lost: int
    note: str = ""


def batch_of(operation_id: str) -> tuple[int, int] | None:
    """The pid and the number in an operationID of a gateway's batch; None for any other."""
    if not operation_id.startswith("p_"):
        return None
    found = _BATCH.fullmatch(operation_id)
    return (int(found[1]), int(found[2])) if found else None


@dataclass(slots=True)
class Heard:
    """What a job's events have of one batch. seq: the lowest. at_ms: when the first of them was received."""

    seq: int
    at_ms: int
    kinds: set[Kind]


def heard_in(events: Iterable[Event]) -> dict[tuple[str, int], dict[int, Heard]]:
    """The batches in these events, by the gateway process (peer and pid) and their number."""
    found: dict[tuple[str, str], Heard] = {}
    for event in events:
        if event.operation_id.startswith("p_") and event.peer:
            batch = found.get((event.peer, event.operation_id))
            if batch is None:
                found[event.peer, event.operation_id] = Heard(event.seq, event.received_at, {event.kind})
            else:
                batch.seq, batch.at_ms = min(batch.seq, event.seq), min(batch.at_ms, event.received_at)
                batch.kinds.add(event.kind)
    processes: dict[tuple[str, int], dict[int, Heard]] = {}
    for (peer, operation_id), batch in found.items():
        if name := batch_of(operation_id):
            processes.setdefault((peer, name[0]), {})[name[1]] = batch
    return processes


def view(processes: Mapping[tuple[str, int], Process], now_ms: int) -> list[Gateway]:
    """All gateway processes, those heard last first."""
    gateways = []
    for (peer, pid), process in processes.items():
        others = [other for (its_peer, _), other in processes.items() if its_peer == peer and other is not process]
        gateways.append(_gateway(peer, pid, process, others, now_ms))
        if not process.is_two:  # the number went back to the beginning: another process with the same pid
            gateways += [_ended(peer, pid, run, now_ms) for run in process.runs[:-1]]
    return sorted(gateways, key=lambda each: each.last_at_ms, reverse=True)


def _gateway(peer: str, pid: int, process: Process, others: Iterable[Process], now_ms: int) -> Gateway:
    lost: int | None = process.runs[-1].lost(now_ms)
    note = ""
    if process.is_two:
        lost, note = None, "two processes seem to share this address and pid: nothing is concluded of them"
    elif not process.tells_all:
        which = "online" if process.online else "offline"
        lost, note = None, f"only {which} callbacks came: where the others are not enabled, numbers are missing"
    state: State = "silent" if process.is_silent(now_ms) else "live"
    is_followed = any(other.first_at_ms > process.last_at_ms for other in others)
    if is_followed and now_ms - process.last_at_ms > LOST_MS:
        state = "restarted"
    interval_ms = int(process.usual_interval_ms)
    most_lost = max(process.most_lost, lost or 0)
    heard = process.heard if process.is_two else process.runs[-1].heard
    return Gateway(peer, pid, state, process.first_at_ms, process.last_at_ms, interval_ms, heard, lost, most_lost, note)


def _ended(peer: str, pid: int, run: Run, now_ms: int) -> Gateway:
    """What a process was that had the pid before. Its most_lost is with the one that has the pid now."""
    return Gateway(peer, pid, "restarted", run.first_seq, run.last_seq, 0, run.heard, run.lost(now_ms), 0)


# As it stands in the hash: a field for each process, "<peer> <pid>".


def encode_name(peer: str, pid: int) -> str:
    return f"{peer} {pid}"


def decode_name(name: bytes) -> tuple[str, int]:
    """Raises ValueError."""
    peer, _, pid = name.decode().rpartition(" ")
    return peer, int(pid)


def encode(process: Process) -> str:
    return json.dumps(asdict(process), separators=(",", ":"))


def decode(text: bytes) -> Process:
    """Raises ValueError where the text is nothing that `encode` wrote."""
    try:
        fields = json.loads(text)
        runs = [Run(**run) for run in fields.pop("runs")]
        minutes = {int(minute): int(count) for minute, count in fields.pop("minutes").items()}
        return Process(**fields, runs=runs, minutes=minutes)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("no gateway process") from error


def decode_all(fields: Mapping[bytes, bytes]) -> dict[tuple[str, int], Process]:
    """Those that can be read."""
    processes = {}
    for name, text in fields.items():
        try:
            processes[decode_name(name)] = decode(text)
        except ValueError:
            continue
    return processes
