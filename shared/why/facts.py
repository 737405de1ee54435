"""What both servers have of one user at one moment: all that an answer is made from."""

from dataclasses import dataclass
from typing import Literal

from openim_presence import Change
from shared.events import Event
from shared.ignored import Ignored
from shared.memory import Memory
from shared.truth.verdict import Verdict

#: Where an event may wait: on the queue; with a worker; for its next try; for a person.
Place = Literal["queued", "running", "retrying", "failed"]


@dataclass(frozen=True, slots=True)
class Waiting:
    """An event that is not applied. job_id: of its batch. error: why not, if it was tried. next_at_ms: its next try, in
    Unix milliseconds, 0 if none is planned.
    """

    place: Place
    event: Event
    job_id: str
    error: str = ""
    next_at_ms: int = 0


@dataclass(frozen=True, slots=True)
class Journal:
    """What a receiver's journal has and the queue does not. events: of all users. since_ms: when the oldest came."""

    receiver: str
    events: int
    since_ms: int


@dataclass(frozen=True, slots=True)
class Scan:
    """How far a list was searched, the newest first. back_to_ms: how far back, if it was not searched to its end."""

    looked_at: int = 0
    is_whole: bool = True
    back_to_ms: int = 0


@dataclass(frozen=True, slots=True)
class OpenIMSays:
    """What OpenIM itself says of the user.

    platforms: online at the gateways that its API reached. recorded: online by its own record; None if that is not to
    be trusted, as up to 3.8.0. is_comparable: what we hold of the user can be read. verdict: None if both agree.
    trouble: why OpenIM could not be asked, or "".
    """

    platforms: tuple[int, ...] = ()
    recorded: tuple[int, ...] | None = None
    is_comparable: bool = True
    verdict: Verdict | None = None
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """Times are Unix milliseconds.

    at_ms: now, by the queue's server. prefix: of the keys. memory: None if the key is absent, or not a hash. key_type:
    the key's type if it is not a hash, or "". similar: known ids that differ only in blanks, or in upper and lower
    case. is_empty: no event of any user was ever applied here. lease_ms: how long a session lasts without renewal; 0 is
    for ever. leases_held: why no lease runs out now, or "". retention_seconds: 0 is for ever. changes, ignored: the
    user's, the newest first. workers: how many are alive; None if that is not known. openim: None if
    PRESENCE_OPENIM_API is not set. troubles: what could not be read, so that the answer may lack it.
    """

    user_id: str
    at_ms: int
    prefix: str = "presence"
    memory: Memory | None = None
    key_type: str = ""
    similar: tuple[str, ...] = ()
    is_empty: bool = False
    lease_ms: int = 0
    leases_held: str = ""
    retention_seconds: int = 0
    changes: tuple[Change, ...] = ()
    changes_scan: Scan = Scan()
    ignored: tuple[Ignored, ...] = ()
    ignored_scan: Scan = Scan()
    waiting: tuple[Waiting, ...] = ()
    waiting_scan: Scan = Scan()
    journals: tuple[Journal, ...] = ()
    workers: int | None = 1
    openim: OpenIMSays | None = None
    troubles: tuple[str, ...] = ()
