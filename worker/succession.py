"""Which killed worker this one replaces.

A frozen worker is silent as well, but the kernel of its machine knows the difference: what a process holds is released
when the process ends. So each worker holds a name, which others on the machine can try.
"""

import re
import socket
from dataclasses import astuple, dataclass
from pathlib import Path

from redis import Redis
from rq import Queue
from rq.worker_registration import get_keys

#: Ours in RQ's hash of a worker: its Place as text, or "". Other workers read it.
PLACE_FIELD = "place"

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_MOUNTS = Path("/proc/self/mountinfo")
#: In the line of an overlay that is mounted at /: the directory of what is written there (proc_pid_mountinfo(5)).
_WRITTEN = re.compile(r"^\S+ \S+ \S+ \S+ / .* - overlay \S+ \S*\bupperdir=([^,\s]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process runs.

    machine: its hostname and the run of its kernel. network, pids: the process's namespaces. files: where its
    container's files are written, "" if it is in none; a container that is started again has the same ones.
    """

    machine: str
    network: str
    pids: str
    files: str

    @classmethod
    def here(cls) -> "Place | None":
        """None if the kernel does not say; Linux does."""
        try:
            machine = f"{socket.gethostname()}/{_BOOT.read_text().strip()}"
            network, pids = (str(Path("/proc/self/ns", each).readlink()) for each in ("net", "pid"))
            return cls(machine, network, pids, files_of(_MOUNTS.read_text(errors="replace")))
        except OSError:
            return None

    @classmethod
    def parse(cls, text: str) -> "Place | None":
        parts = text.split(" ")
        return cls(*parts) if len(parts) == 4 else None

    def __str__(self) -> str:
        return " ".join(astuple(self))


def files_of(mounts: str) -> str:
    """The directory in which the container's files are written; "" if there is no overlay at /.

    mounts: /proc/self/mountinfo. This is what Docker, containerd and Podman use for a container's root.
    """
    found = _WRITTEN.findall(mounts)
    return found[-1] if found else ""  # the last mount covers those before it


def has_ended(name: str, there: Place | None, here: Place | None) -> bool:
    """Whether the worker `name`, which ran `there`, has ended for certain, as seen from `here`."""
    if not there or not here or there.machine != here.machine:
        return False
    if there.network == here.network:
        if held := hold(name):
            held.close()
        return held is not None
    # If a container is started again, nothing is left of its former processes.
    return there.files == here.files != "" and there.pids != here.pids


def hold(name: str) -> socket.socket | None:
    """Holds the name until the socket is closed or this process ends; None if a process has it, or nobody can."""
    try:
        held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            held.bind(f"\0presence-worker-{name}".encode())  # in no file: unix(7), abstract sockets
        except OSError:
            held.close()
            return None
    except OSError:
        return None
    return held


class Succession:
    """The place of this process and its worker's name, and the one worker that it replaces."""

    def __init__(self, name: str) -> None:
        self._held = hold(name)
        self._here = Place.here() if self._held else None
        self._settled = False
        #: What PLACE_FIELD should have.
        self.place = str(self._here or "")

    def replace_one(self, queue: Queue, connection: Redis) -> str | None:
        """Strikes off one worker of the queue that was killed on this machine; returns its name, or None.

        It looks only once: this process does not replace one that is killed later. It takes only one: if several were
        killed, the others are still missing. Raises RedisError.
        """
        if self._settled:
            return None
        for key in get_keys(queue):
            name = key.rpartition(":")[2]
            place = connection.hget(key, PLACE_FIELD)
            there = Place.parse(place.decode(errors="replace")) if isinstance(place, bytes) else None
            if has_ended(name, there, self._here) and connection.delete(key):
                self._settled = True
                return name
        self._settled = True
        return None
