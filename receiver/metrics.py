"""What a receiver counts. Plain numbers on the request path; they become metrics when a page asks for them.

The numbers of several processes are added up by the process that shows them, so they travel as flat JSON: the name of
each has its labels in it, `callbacks callbackUserOnlineCommand path accepted 200`.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

from prometheus_client.core import CounterMetricFamily, Metric

from shared.observe.metrics import gauge, histogram, of_log

#: The label of a command or shape that is not known, or not ours.
OTHER = "other"
#: The shape of what is no request: a head that is too large, or no HTTP.
UNREADABLE = "none"

#: Upper bounds of the time to an answer, in seconds.
ANSWER_BOUNDS = (
    *(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005),
    *(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
)


class Counts:
    """For the event loop's thread alone: 0.4 µs a request."""

    def __init__(self) -> None:
        self._callbacks: defaultdict[tuple[str, str, str, int], int] = defaultdict(int)
        self._answers = [0] * (len(ANSWER_BOUNDS) + 1)
        self._answer_seconds = 0.0

    def accepted(self, command: str, shape: str, started: float) -> None:
        """started: time.perf_counter() when the request was taken up."""
        self._callbacks[command, shape, "accepted", 200] += 1
        seconds = perf_counter() - started
        self._answers[bisect_left(ANSWER_BOUNDS, seconds)] += 1
        self._answer_seconds += seconds

    def other(self, outcome: str, status: int, command: str = OTHER, shape: str = OTHER) -> None:
        """outcome: `refused`, `forwarded` or `foreign`.

        command, shape: of a fixed set, OTHER aside; a peer must not be able to make up metrics.
        """
        self._callbacks[command, shape, outcome, status] += 1

    def numbers(self) -> dict[str, float]:
        """All of them, flat."""
        numbers: dict[str, float] = {
            f"callbacks {command} {shape} {outcome} {status}": count
            for (command, shape, outcome, status), count in self._callbacks.items()
        }
        numbers |= {f"answers {index}": count for index, count in enumerate(self._answers)}
        return {**numbers, "answer_seconds": self._answer_seconds}


@dataclass(frozen=True, slots=True)
class State:
    """What one receiver process shows of itself, or what all of a receiver do.

    pid: whose counts these are. counts: only ever grow. oldest_seconds: since when the oldest event in the journal has
    been waiting. room_bytes: what the journal can take before its limit; disk_bytes: before its disk is full.
    unreadable_files: of the journal, and folders. kept_bytes: what is in the journal still, though Redis has it.
    """

    pid: int
    counts: Mapping[str, float] = field(default_factory=dict)
    ready: bool = False
    redis_up: bool = False
    events: int = 0
    bytes: int = 0
    oldest_seconds: float = 0.0
    room_bytes: int = 0
    disk_bytes: int = 0
    damaged_files: int = 0
    unreadable_files: int = 0
    kept_bytes: int = 0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class MonotonicCounts:
    """The counts of one process slot, over all processes that come to fill it: they must never go back."""

    def __init__(self) -> None:
        self._before: Counter[str] = Counter()
        self._last: State | None = None

    def add(self, state: State | None) -> "Counter[str]":
        """state: None where the process did not answer; it then counts as it did the last time."""
        if state:
            if self._last and self._last.pid != state.pid:
                self._before.update(self._last.counts)
            self._last = state
        total = Counter(self._before)
        total.update(self._last.counts if self._last else {})
        return total


def merge(states: list[State | None], ledgers: list[MonotonicCounts]) -> State:
    """One state of several processes: it is as well with all as with the worst of them."""
    counts: Counter[str] = Counter()
    for state, ledger in zip(states, ledgers, strict=True):
        counts.update(ledger.add(state))
    known = [state for state in states if state]
    return State(
        pid=0,
        counts=counts,
        ready=None not in states and all(state.ready for state in known),
        redis_up=bool(known) and all(state.redis_up for state in known),
        events=sum(state.events for state in known),
        bytes=sum(state.bytes for state in known),
        oldest_seconds=max((state.oldest_seconds for state in known), default=0.0),
        room_bytes=sum(state.room_bytes for state in known),
        # They share the directory.
        disk_bytes=min((state.disk_bytes for state in known), default=0),
        damaged_files=max((state.damaged_files for state in known), default=0),
        unreadable_files=sum(state.unreadable_files for state in known),
        kept_bytes=sum(state.kept_bytes for state in known),
    )


def callbacks(state: State, outcome: str) -> int:
    """How many there were with that outcome since the receiver started."""
    names = (name.split(" ") for name in state.counts)
    return sum(int(state.counts[" ".join(name)]) for name in names if name[0] == "callbacks" and name[3] == outcome)


def of_state(state: State) -> Iterator[Metric]:
    """The metrics of one receiver, whatever its number of processes."""
    callbacks = CounterMetricFamily(
        "presence_callbacks", "Requests on the callback port.", labels=["command", "shape", "outcome", "status"]
    )
    pushes = CounterMetricFamily("presence_relay_pushes", "Batches handed to the queue.", labels=["outcome"])
    forwards = CounterMetricFamily(
        "presence_forwards", "Callbacks and copies sent on to PRESENCE_FORWARD_URL.", labels=["outcome"]
    )
    for name, count in sorted(state.counts.items()):
        kind, *labels = name.split(" ")
        if kind == "callbacks":
            callbacks.add_metric(labels, count)
        elif kind == "pushes":
            pushes.add_metric(labels, count)
        elif kind == "forwards":
            forwards.add_metric(labels, count)
    yield callbacks
    yield histogram(
        "presence_answer_seconds",
        "From the headers of a callback that was accepted to its answer.",
        ANSWER_BOUNDS,
        [int(state.counts.get(f"answers {index}", 0)) for index in range(len(ANSWER_BOUNDS) + 1)],
        state.counts.get("answer_seconds", 0.0),
    )
    yield pushes
    yield forwards
    yield of_log(state.counts.get("log_lines_dropped", 0))
    yield gauge("presence_journal_events", "Accepted events that Redis does not have yet.", state.events)
    yield gauge("presence_journal_bytes", "The same in bytes.", state.bytes)
    yield gauge(
        "presence_journal_oldest_seconds", "Since when the oldest of them has been waiting.", state.oldest_seconds
    )
    yield gauge(
        "presence_journal_room_bytes",
        "What the journal can still take: to its limit, or to a full disk.",
        min(state.room_bytes, state.disk_bytes),
    )
    yield gauge("presence_journal_damaged_files", "Files set aside for somebody to look at.", state.damaged_files)
    yield gauge(
        "presence_journal_unreadable_files",
        "Files, and folders to take over, that cannot be read: their events wait.",
        state.unreadable_files,
    )
    yield gauge(
        "presence_journal_kept_bytes", "What stays in the journal until Redis will not lose it.", state.kept_bytes
    )
    yield gauge("presence_ready", "1 where events are taken, as /readyz says.", float(state.ready))
