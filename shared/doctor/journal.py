"""The directory in which receivers keep what Redis does not have yet."""

from collections.abc import Iterator
from dataclasses import dataclass

from shared.doctor.findings import Check, Finding, Item
from shared.observe.readiness import Readiness
from shared.settings import Settings

#: Below this PresenceJournalAlmostFull is raised (deploy/alerts.yml).
ROOM_LEAST_BYTES = 64 * 1024 * 1024
_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "9p", "afs", "lustre", "glusterfs", "fuse.sshfs"}
_NETWORK |= {"fuse.glusterfs", "fuse.s3fs", "virtiofs", "gpfs", "beegfs", "ocfs2", "gfs2"}
_VOLATILE = {"tmpfs": "in memory", "ramfs": "in memory", "overlay": "in the container's own layer"}


@dataclass(frozen=True, slots=True)
class JournalFacts:
    """path: absolute. exists: whether the directory is there. file_system: its type, "" if that is not known.
    free_bytes: for this user. trouble: why nothing can be written, or "". is_foreign: this user is not its owner, so
    the receiver may not have that `trouble`. lock_trouble: why locks do not work, or "". damaged: files set aside.
    unreadable: files and folders that this user cannot read. waiting_files, waiting_bytes: of events that wait.
    """

    path: str
    exists: bool
    file_system: str = ""
    free_bytes: int = 0
    trouble: str = ""
    is_foreign: bool = False
    lock_trouble: str = ""
    damaged: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    waiting_files: int = 0
    waiting_bytes: int = 0


def look(facts: JournalFacts, settings: Settings, here: Readiness | None, *, is_expected: bool) -> Iterator[Item]:
    """here: what a receiver on this machine says. is_expected: no receiver is known elsewhere."""
    if not facts.exists and not here:
        if is_expected:
            yield Check("journal", "cannot tell", f"{facts.path} does not exist, and no receiver runs on this machine")
        else:
            yield Check("journal", "not used", f"{facts.path} does not exist: the receivers are elsewhere")
        return
    if here and here.journal != facts.path:
        because = f"the receiver on this machine has its journal at {here.journal}: run the doctor with its settings"
        yield Check("journal", "cannot tell", because)
        return
    if (facts.trouble or facts.unreadable) and facts.is_foreign:
        because = f"{facts.path} is another user's: run the doctor as the user of the receiver"
        yield Check("journal", "cannot tell", because)
    else:
        yield Check("journal")
        yield from _of_access(facts)
    yield from _of_place(facts, settings)
    if facts.damaged and not here:  # a receiver reports them itself
        yield Finding("P032", f"{facts.path} has damaged files: {_some(facts.damaged)}")
    if facts.waiting_bytes and not here:
        yield Finding("P038", f"{facts.waiting_bytes:,} bytes in {facts.path}, and no receiver on this machine")


def _of_access(facts: JournalFacts) -> Iterator[Item]:
    if facts.trouble:
        yield Finding("P030", f"{facts.path} cannot be written: {facts.trouble}")
    elif facts.lock_trouble:
        yield Finding("P031", f"locks do not work in {facts.path}: {facts.lock_trouble}")
    if facts.unreadable:
        yield Finding("P033", f"not readable in {facts.path}: {_some(facts.unreadable)}")


def _of_place(facts: JournalFacts, settings: Settings) -> Iterator[Item]:
    kind = facts.file_system
    if not kind:
        yield Check("file system of the journal", "cannot tell", "this system does not say")
    elif kind in _NETWORK:
        yield Finding("P034", f"{facts.path} is on a network file system, {kind}")
    elif kind in _VOLATILE:
        yield Finding("P035", f"{facts.path} is {_VOLATILE[kind]} ({kind})")
    if not facts.exists:
        return
    wanted = settings.journal_max_bytes * settings.processes
    if facts.free_bytes < ROOM_LEAST_BYTES:
        yield Finding("P037", f"{facts.free_bytes:,} bytes are free at {facts.path}")
    elif facts.free_bytes + facts.waiting_bytes < wanted:
        yield Finding(
            "P036", f"{facts.free_bytes:,} bytes are free at {facts.path}, and the journal may take {wanted:,}"
        )


def _some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
