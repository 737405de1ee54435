"""What a receiver counts: plain numbers on the request path, which become metrics when a page asks for them.

The process that shows the numbers of several processes adds them up, so they travel as flat JSON; each name includes
its labels: `callbacks callbackUserOnlineCommand path accepted 200`.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

from prometheus_client.core import CounterMetricFamily, Metric

from shared.observe.metrics import gauge, histogram, of_log
from shared.observe.readiness import Readiness

#: The label of a command or URL form that is unknown, or not ours.
OTHER = "other"
#: The label `shape` of what is not a request: its head is too large, or it is not HTTP.
UNREADABLE = "none"

#: Upper bounds of the time to an answer, in seconds.
ANSWER_BOUNDS = (
    *(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005),
    *(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
)


class Counts:
    """For the event loop's thread only; costs 0.4 µs a request."""

    def __init__(self) -> None:
        self._callbacks: defaultdict[tuple[str, str, str, int], int] = defaultdict(int)
        self._answers = [0] * (len(ANSWER_BOUNDS) + 1)
        self._answer_seconds = 0.0

    def accepted(self, command: str, url_form: str, started: float) -> None:
        """started: time.perf_counter() when work on the request began. url_form: becomes the label `shape`."""
        self._callbacks[command, url_form, "accepted", 200] += 1
        seconds = perf_counter() - started
        self._answers[bisect_left(ANSWER_BOUNDS, seconds)] += 1
        self._answer_seconds += seconds

    def other(self, outcome: str, status: int, command: str = OTHER, url_form: str = OTHER) -> None:
        """outcome: `refused`, `forwarded` or `foreign`.

        command, url_form: from fixed sets, or OTHER; a peer must not be able to make up metrics.
        """
        self._callbacks[command, url_form, outcome, status] += 1

    def numbers(self) -> dict[str, float]:
        """All counts, flat."""
        numbers: dict[str, float] = {
            f"callbacks {command} {url_form} {outcome} {status}": count
            for (command, url_form, outcome, status), count in self._callbacks.items()
        }
        numbers |= {f"answers {index}": count for index, count in enumerate(self._answers)}
        return {**numbers, "answer_seconds": self._answer_seconds}


@dataclass(frozen=True, slots=True)
class State:
    """What one receiver process, or all processes of a receiver, count; beside it stands their Readiness.

    pid: the process of these counts. counts: never go back. room_bytes: what the journal can take before its limit.
    disk_bytes: before its disk is full.
    """

    pid: int
    counts: Mapping[str, float] = field(default_factory=dict)
    room_bytes: int = 0
    disk_bytes: int = 0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class MonotonicCounts:
    """The counts of one place for a process, over all processes that ran there: they must never go back."""

    def __init__(self) -> None:
        self._before: Counter[str] = Counter()
        self._last: State | None = None

    def add(self, state: State | None) -> "Counter[str]":
        """state: None if the process did not answer; its last counts are then used again."""
        if state:
            if self._last and self._last.pid != state.pid:
                self._before.update(self._last.counts)
            self._last = state
        total = Counter(self._before)
        total.update(self._last.counts if self._last else {})
        return total


def merge(states: list[State | None], counts_of: list[MonotonicCounts]) -> State:
    """One state for several processes: their sum. counts_of: each process's place."""
    counts: Counter[str] = Counter()
    for state, monotonic in zip(states, counts_of, strict=True):
        counts.update(monotonic.add(state))
    known = [state for state in states if state]
    return State(
        pid=0,
        counts=counts,
        room_bytes=sum(state.room_bytes for state in known),
        # They share the directory.
        disk_bytes=min((state.disk_bytes for state in known), default=0),
    )


def callbacks(state: State, outcome: str) -> int:
    """How many there were with that outcome since the receiver started."""
    names = (name.split(" ") for name in state.counts)
    return sum(int(state.counts[" ".join(name)]) for name in names if name[0] == "callbacks" and name[3] == outcome)


def of_receiver(state: State, readiness: Readiness) -> Iterator[Metric]:
    """The metrics of one receiver, whatever its number of processes."""
    callbacks = CounterMetricFamily(
        "presence_callbacks", "Requests on the callback port.", labels=["command", "shape", "outcome", "status"]
    )
    pushes = CounterMetricFamily("presence_relay_pushes", "Batches handed to the queue.", labels=["outcome"])
    forwards = CounterMetricFamily(
        "presence_forwards", "Callbacks and copies forwarded to PRESENCE_FORWARD_URL.", labels=["outcome"]
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
        "From the headers of an accepted callback to its answer.",
        ANSWER_BOUNDS,
        [int(state.counts.get(f"answers {index}", 0)) for index in range(len(ANSWER_BOUNDS) + 1)],
        state.counts.get("answer_seconds", 0.0),
    )
    yield pushes
    yield forwards
    yield of_log(state.counts.get("log_lines_dropped", 0))
    yield gauge("presence_journal_events", "Accepted events that Redis does not have yet.", readiness.journal_events)
    yield gauge("presence_journal_bytes", "The same in bytes.", readiness.journal_bytes)
    yield gauge(
        "presence_journal_oldest_seconds", "How long the oldest of them has waited.", readiness.journal_oldest_seconds
    )
    yield gauge(
        "presence_journal_room_bytes",
        "How much more the journal can take before its limit or a full disk.",
        min(state.room_bytes, state.disk_bytes),
    )
    yield gauge("presence_journal_damaged_files", "Damaged files that were set aside.", readiness.damaged_files)
    yield gauge(
        "presence_journal_unreadable_files",
        "Files, and folders to take over, that cannot be read, so that their events wait.",
        readiness.unreadable_files,
    )
    yield gauge(
        "presence_journal_kept_bytes", "What the journal keeps until Redis can no longer lose it.", readiness.kept_bytes
    )
    yield gauge("presence_ready", "1 if events are taken, as /readyz says.", float(readiness.status == "ready"))
