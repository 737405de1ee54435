"""What people, metrics and programs see of OpenIM's gateways."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from shared.gateways.batches import Name
from shared.gateways.process import Process
from shared.gateways.run import LOST_MS, Run

#: A process is no longer shown this long after its last callback.
KEPT_MS = 24 * 3_600_000

State = Literal["live", "silent", "restarted"]


@dataclass(frozen=True, slots=True)
class Gateway:
    """One gateway process.

    heard: the batches that came. lost: those that never came; None if nothing can be concluded, and `note` says why.
    missing: the first and the last number of each known gap. interval_ms: the usual time between two batches. lead_ms:
    how far its clock is ahead; negative if it is behind, or if its batches were late.
    """

    peer: str
    pid: int
    state: State
    first_at_ms: int
    last_at_ms: int
    interval_ms: int
    heard: int
    lost: int | None
    missing: tuple[tuple[int, int], ...] = ()
    note: str = ""
    lead_ms: int = 0


@dataclass(frozen=True, slots=True)
class Gateways:
    """All gateways: the processes of the last day, the one that called back last first, and sums that never go back.

    late_at_ms: when a callback last came so late that the gateway may have dropped others; 0 if none has.
    """

    processes: tuple[Gateway, ...] = ()
    heard: int = 0
    lost: int = 0
    late_at_ms: int = 0


def view(known: Mapping[Name, Process], now_ms: int, forgotten_heard: int = 0, forgotten_lost: int = 0) -> Gateways:
    """forgotten_heard, forgotten_lost: what processes and numbers that are no longer in `known` contributed."""
    seen: list[Gateway] = []
    for (peer, pid), process in known.items():
        beside = [other for name, other in known.items() if name[0] == peer and other is not process]
        seen += _of_process(peer, pid, process, beside, now_ms)
    recent = [each for each in seen if now_ms - each.last_at_ms <= KEPT_MS]
    return Gateways(
        tuple(sorted(recent, key=lambda each: each.last_at_ms, reverse=True)),
        forgotten_heard + sum(process.heard for process in known.values()),
        forgotten_lost + sum(process.lost(now_ms) for process in known.values()),
        max((process.late_at_ms for process in known.values()), default=0),
    )


def _of_process(peer: str, pid: int, process: Process, beside: Collection[Process], now_ms: int) -> list[Gateway]:
    note = ""
    if process.is_two:
        note = "two processes seem to share this address and pid: nothing is concluded"
    elif not process.tells_all:
        which = "online" if process.online else "offline"
        note = f"only {which} callbacks came: if the others are not enabled, missing numbers are normal"
    interval_ms = int(process.usual_interval_ms)

    def gateway(state: State, run: Run | Process, interval_ms: int = 0) -> Gateway:
        shown = (peer, pid, state, run.first_at_ms, run.last_at_ms, interval_ms, run.heard)
        if note or isinstance(run, Process):
            return Gateway(*shown, None, note=note)
        lead_ms = run.last_seq - run.last_at_ms
        return Gateway(*shown, run.lost(now_ms), tuple(run.missing(now_ms)), lead_ms=lead_ms)

    *ended, last = process.true_runs
    if process.is_two:
        return [gateway(_state(process, process, beside, now_ms), process, interval_ms)]
    return [
        gateway(_state(process, last, beside, now_ms), last, interval_ms),
        *(gateway("restarted", run) for run in ended),  # the numbers went back to the beginning
    ]


def _state(process: Process, run: Run | Process, beside: Collection[Process], now_ms: int) -> State:
    """beside: other processes at its address."""
    silent = process.is_silent(now_ms)
    if any(other.first_at_ms > run.last_at_ms for other in beside):
        # If several gateways share an address, a new one need not have replaced this one.
        shared = any(other.first_at_ms <= run.last_at_ms and run.first_at_ms <= other.last_at_ms for other in beside)
        if silent if shared else now_ms - run.last_at_ms > LOST_MS:
            return "restarted"
    return "silent" if silent else "live"
