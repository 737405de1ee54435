"""The journal directory: one folder a receiver process, locked for as long as that process lives.

A folder that nobody locks was left by a process that died. Whoever locks it may drain and remove it. The lock
is flock(2) on the folder itself: the kernel lets go of it however the process ends.
"""

import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_PATTERN = "events-*"


class Folder:
    """A folder that this process has locked."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor

    def remove(self) -> None:
        """Removes the folder, if it is empty as it should be, and lets go of it."""
        with suppress(OSError):  # somebody has put something else there: that stays
            self.path.rmdir()
        self.release()

    def release(self) -> None:
        """Leaves the folder, and what is in it, to the next who comes."""
        os.close(self.descriptor)


def create(root: Path) -> Folder:
    """Makes and locks a folder of our own. Raises OSError."""
    root.mkdir(parents=True, exist_ok=True)
    while True:
        # The time first, so that names sort from the oldest to the newest.
        path = root / f"events-{time.time_ns():x}-{os.getpid()}-{secrets.token_hex(4)}"
        path.mkdir()
        if folder := _lock(path):
            return folder


def adopt_orphans(root: Path) -> Iterator[Folder]:
    """Locks, oldest first, each folder whose process is gone. Raises OSError."""
    for path in sorted(root.glob(_PATTERN)):
        if folder := _lock(path):
            yield folder


def _lock(path: Path) -> Folder | None:
    """None where somebody else has it, or had it and removed it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Between our open and our flock another may have drained and removed it.
        if os.fstat(descriptor).st_ino == path.stat().st_ino:
            return Folder(path, descriptor)
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None
