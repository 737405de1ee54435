"""The whole system at one moment, as its Redis servers show it: the source of metrics and `presence status`."""

from dataclasses import dataclass, field

from shared.gateways.view import Gateways
from shared.observe.counters import Stats
from shared.reports import Report
from shared.truth.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Server:
    """One Redis, or the primaries of a Cluster.

    error: why it does not answer, or "". max_bytes: 0 if it has no limit. troubles: why it takes no writes or may not
    keep them.
    """

    error: str = ""
    version: str = ""
    used_bytes: int = 0
    max_bytes: int = 0
    evicts: bool = False
    on_disk: bool = True
    troubles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker. since_ms: when it started. seen_ms: its last heartbeat. skew_ms: as in a Report."""

    name: str
    state: str
    since_ms: int
    seen_ms: int
    skew_ms: int = 0
    host: str = ""
    pid: int = 0


@dataclass(frozen=True, slots=True)
class QueueState:
    """What RQ's keys and ours say on the queue's server.

    at_ms: when the server was asked, 0 if it does not say; all times here are by its clock. oldest_ms: when the oldest
    event in the queue was received, 0 if none waits. jobs: includes those that a worker has taken but not begun.
    silent_workers: without a heartbeat for 15 s. leases_held: why no lease runs out now, or "". ledger: the
    results of comparisons with OpenIM. troubles: keys of wrong types. denied: what our user may not read.
    """

    server: Server
    at_ms: int = 0
    jobs: int = 0
    oldest_ms: int = 0
    running: int = 0
    retrying: int = 0
    failed: int = 0
    workers: tuple[Worker, ...] = ()
    silent_workers: tuple[Worker, ...] = ()
    receivers: tuple[Report, ...] = ()
    leases_held: str = ""
    gateways: Gateways = field(default_factory=Gateways)
    ledger: Ledger = field(default_factory=Ledger)
    troubles: tuple[str, ...] = ()
    denied: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PresenceState:
    """What our keys say on presence's server. last_changes: of the stream of changes, newest first.

    has_stats: False if the key of `stats` cannot be read. troubles, denied: as of the queue.
    """

    server: Server
    stats: Stats = field(default_factory=Stats)
    has_stats: bool = True
    last_changes: tuple[dict[str, str], ...] = ()
    troubles: tuple[str, ...] = ()
    denied: tuple[str, ...] = ()

    @property
    def known_stats(self) -> Stats | None:
        """None if nothing is known of them: their zeros would say that nobody is online."""
        return self.stats if self.has_stats and not self.server.error else None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Both at one time. at_ms: Unix milliseconds, by the clock of the queue's server if it answers."""

    at_ms: int
    queue: QueueState
    presence: PresenceState
