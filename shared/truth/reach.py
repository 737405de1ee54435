"""Which gateways an answer of OpenIM covers.

The answer to question C (see shared/openim/client.py) has what those gateways say that OpenIM reached, and nothing of
the others. If a user is online in the answer, and the last callback came from a known gateway process, that process was
reached: the user is its witness. Pure: no clock.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from shared.gateways.batches import Name
from shared.gateways.process import Process
from shared.gateways.run import ORDER_MS
from shared.gateways.view import view
from shared.openim.answers import Platforms
from shared.truth.ours import Batch, Ours

State = Literal["answered", "gone", "out of reach"]


class Home(NamedTuple):
    """A gateway process that may have a session. is_over: the run of the process that had it has ended."""

    name: Name
    is_over: bool


class Reach:
    """What the answers seen so far show of the gateway processes. now_ms: by the clock of the queue's server."""

    def __init__(self, processes: Mapping[Name, Process], now_ms: int) -> None:
        self._processes = processes
        shown = view(processes, now_ms).processes  # those heard last come first
        latest = {(each.peer, each.pid): each.state for each in reversed(shown)}
        self._gone = {name for name in processes if latest.get(name) != "live"}
        #: For each process that answered, a user who proves it.
        self.answered: dict[Name, str] = {}

    def see(self, asked: Iterable[Ours], online: Platforms) -> None:
        """Takes one answer to question C. asked: the users in that question, as we knew them before it."""
        for ours in asked:
            for platform_id in ours.platforms() & online.get(ours.user_id, {}).keys():
                home = self.home(ours, platform_id)
                # If two processes have the same address and pid, a witness of one says nothing about the other.
                if home and not home.is_over and not self._processes[home.name].is_two:
                    self.answered[home.name] = ours.user_id

    @property
    def is_known(self) -> bool:
        """Whether there are gateway processes whose callbacks name them: OpenIM 3.8.2 and later."""
        return bool(self._processes)

    @property
    def all_answered(self) -> bool:
        """Whether all live processes have answered, and there is one."""
        return bool(self.answered) and not self.out_of_reach(self._processes)

    def out_of_reach(self, names: Iterable[Name]) -> list[Name]:
        """Those of the processes that are neither known to have answered nor known to be gone."""
        return sorted(name for name in names if self.state(name) == "out of reach")

    def live(self) -> list[Name]:
        """The processes that are not known to be gone, whether they answered or not."""
        return [name for name in self._processes if name not in self._gone]

    def state(self, name: Name) -> State:
        """gone: another process has taken its place, or it has been silent for too long."""
        if name in self.answered:
            return "answered"
        return "gone" if name in self._gone else "out of reach"

    def home(self, ours: Ours, platform_id: int) -> Home | None:
        """The process that has the user's session on that platform; None if several may have it, or it is unknown."""
        homes = self.homes(ours, platform_id)
        return homes[0] if len(homes) == 1 else None

    def homes(self, ours: Ours, platform_id: int) -> list[Home]:
        """The processes that may have the user's session on that platform; empty if nothing is known about that."""
        batch = ours.batches.get(platform_id)
        if not batch:
            return []
        named = {name: process for name, process in self._processes.items() if name[1] == batch.pid}
        homes = [Home(name, is_over) for name, process in named.items() for is_over in _runs_with(batch, process)]
        return homes or [Home(name, False) for name in named]


def _runs_with(batch: Batch, process: Process) -> Iterator[bool]:
    """For each run of the process that has the batch: whether that run is over."""
    runs = process.true_runs
    for run in runs:
        has_number = run.low <= batch.number <= run.high
        if has_number and run.first_seq - ORDER_MS <= batch.seq <= run.last_seq + ORDER_MS:
            yield run is not runs[-1] and not process.is_two
