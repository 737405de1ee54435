"""The recordings of a real OpenIM in tests/recordings, and the comparison of our presence with its record."""

import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from shared.events import Event, Kind

DIRECTORY = Path(__file__).parent / "recordings"
CHURNS = ("churn-600", "churn-400", "churn-main")
#: Single scenarios, by name.
SCENARIOS = sorted(path.stem for path in DIRECTORY.glob("*.json"))

#: The platforms of each user who is online; others may be absent.
Platforms = Mapping[str, list[int]]


class Call(NamedTuple):
    """One callback. at: seconds since the recording began."""

    at: float
    kind: Kind
    user_id: str
    platform_id: int
    seq: int
    operation_id: str

    def event(self, event_id: str) -> Event:
        command: Any = f"callbackAfterUser{self.kind.capitalize()}Command"
        return Event(self.user_id, command, self.seq, "", self.platform_id, "", self.operation_id, self.seq, event_id)


@dataclass(frozen=True)
class Recording:
    """calls: in the order in which they came. pauses: when nothing happened, and who was online in OpenIM's record."""

    openim: str
    acts: int
    calls: list[Call]
    pauses: list[tuple[float, Platforms]]

    def pieces(self) -> Iterator[tuple[list[Call], Platforms]]:
        """The calls up to each pause, and the record then."""
        rest = iter(self.calls)
        call = next(rest, None)
        for at, record in self.pauses:
            piece = []
            while call and call.at <= at:
                piece.append(call)
                call = next(rest, None)
            yield piece, record


def load(name: str) -> Recording:
    """A recording of CHURNS or SCENARIOS."""
    if name in CHURNS:
        read = json.loads(gzip.decompress((DIRECTORY / f"{name}.json.gz").read_bytes()))
        acts, pauses = sum(read["acts"].values()), read["pauses"]
    else:
        read = json.loads((DIRECTORY / f"{name}.json").read_text())
        acts, pauses = len(read["steps"]), read["truth"]
    calls = [Call(*row) for row in read["calls"]]
    return Recording(read["openim"], acts, calls, [(pause["at"], pause["record"]) for pause in pauses])


Wrong = tuple[str, int, Literal["ghost", "false offline"]]


@dataclass
class Comparison:
    """Platforms that we show differently from OpenIM's record, compared at each pause.

    A wrong platform counts once, at the first pause that shows it, until it was right, or wrong in the other way. now:
    those that are wrong at the last pause.
    """

    counts: Counter[str] = field(default_factory=Counter)
    now: set[Wrong] = field(default_factory=set)

    def look(self, ours: Platforms, record: Platforms) -> None:
        before, self.now = self.now, set()
        for user in ours.keys() | record.keys():
            mine, theirs = set(ours.get(user, [])), set(record.get(user, []))
            self.now |= {(user, platform, "ghost") for platform in mine - theirs}
            self.now |= {(user, platform, "false offline") for platform in theirs - mine}
        self.counts.update(kind for _, _, kind in self.now - before)

    @property
    def ghosts(self) -> int:
        return self.counts["ghost"]

    @property
    def false_offlines(self) -> int:
        return self.counts["false offline"]


def compare(recording: Recording, rule: Callable[[list[Event]], list[int]]) -> Comparison:
    """Plays the calls to a rule: which platforms of one user are online, given all of the user's events so far."""
    events: dict[str, list[Event]] = {}
    comparison, ours = Comparison(), {}
    for piece, record in recording.pieces():
        for number, call in enumerate(piece, sum(map(len, events.values()))):
            events.setdefault(call.user_id, []).append(call.event(str(number)))
        ours |= {user: rule(events[user]) for user in {call.user_id for call in piece}}
        comparison.look(ours, record)
    return comparison
