"""OpenIM's batches, as far as the events of one job show them.

A gateway of OpenIM 3.8.2 and later numbers its batches: operationID `p_<pid>_<n>` (open-im-server,
internal/msggateway/online.go). Several callbacks, of several users, have one number.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from shared.events import KINDS, Event, Kind

#: A gateway process: the address that its callbacks come from, and its pid.
Name = tuple[str, int]

_BATCH = re.compile(r"p_(\d{1,10})_(\d{1,15})", re.ASCII)


#: A user who is online, and on which platform.
Witness = tuple[str, int]
#: How many of one batch are kept: it may name thousands.
MOST_WITNESSES = 4


@dataclass(slots=True)
class Heard:
    """What a job's events show of one batch.

    seq: the lowest, by the gateway's clock. at_ms: when the first event was received, in Unix milliseconds by the clock
    of the queue's server. kinds: of the events. witnesses: some of the users that the batch names online. quickest_ms,
    slowest_ms: from an event's stamp to its receipt, plus the difference between the two clocks.
    """

    seq: int
    at_ms: int
    kinds: set[Kind]
    witnesses: list[Witness] = field(default_factory=list)
    quickest_ms: int = 0
    slowest_ms: int = 0


def batch_of(operation_id: str) -> tuple[int, int] | None:
    """The pid and the number in an operationID of a gateway's batch; None for any other."""
    found = _BATCH.fullmatch(operation_id)
    return (int(found[1]), int(found[2])) if found else None


def heard_in(events: Iterable[Event], skew_ms: int = 0) -> dict[Name, dict[int, Heard]]:
    """The batches in these events, by their gateway process and their number.

    skew_ms: how far the clock of their receiver is ahead of that of the queue's server. Events of older receivers name
    no peer, and are skipped.
    """
    found: dict[tuple[str, str], Heard] = {}
    # All events pass here: unpacking them at once is twice as fast as naming their fields one by one.
    for user_id, command, seq, _, platform_id, _, operation_id, received_at, _, peer in events:
        if operation_id[:2] != "p_" or not peer:
            continue
        kind, batch, way_ms = KINDS[command], found.get((peer, operation_id)), received_at - seq
        if batch is None:
            batch = found[peer, operation_id] = Heard(seq, received_at, {kind}, [], way_ms, way_ms)
        else:
            batch.seq = min(batch.seq, seq)
            batch.at_ms = min(batch.at_ms, received_at)
            batch.kinds.add(kind)
            if way_ms > batch.slowest_ms:
                batch.slowest_ms = way_ms
            elif way_ms < batch.quickest_ms:
                batch.quickest_ms = way_ms
        if kind == "online" and platform_id and len(batch.witnesses) < MOST_WITNESSES:
            batch.witnesses.append((user_id, platform_id))
    processes: dict[Name, dict[int, Heard]] = {}
    for (peer, operation_id), batch in found.items():
        if name := batch_of(operation_id):
            batch.at_ms -= skew_ms
            batch.quickest_ms -= skew_ms
            batch.slowest_ms -= skew_ms
            processes.setdefault((peer, name[0]), {})[name[1]] = batch
    return processes
