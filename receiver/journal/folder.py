"""The journal directory: one folder a receiver process, locked for as long as that process lives.

A folder without a lock was left by a process that has ended. Another process that locks it may drain and remove it, or
use it as its own. The lock is flock(2) on the folder itself: the kernel releases it however the process ends.
"""

import fcntl
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path

_PREFIX = "events-"
_SUFFIX = ".log"


class Folder:
    """A folder that this process has locked."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor

    @property
    def identity(self) -> str:
        """Identifies the folder: unique, and the same for the next process that uses it."""
        return self.path.name.removeprefix(_PREFIX)

    def file(self, number: int) -> Path:
        return self.path / f"{number:08}{_SUFFIX}"

    def files(self) -> list[Path]:
        """The journal's files in it, the oldest first. Raises OSError."""
        return sorted(path for path in self.path.iterdir() if path.suffix == _SUFFIX)

    def remove(self) -> None:
        """Removes the folder, if it is empty as it should be, and releases it."""
        with suppress(OSError):  # somebody has put something else there: that stays
            self.path.rmdir()
        self.release()

    def release(self) -> None:
        """Leaves the folder and its content to the next process."""
        os.close(self.descriptor)


def create(root: Path) -> Folder:
    """Makes and locks a new folder. Raises OSError."""
    root.mkdir(parents=True, exist_ok=True)
    while True:
        # The time first, so that names sort from the oldest to the newest.
        path = root / f"{_PREFIX}{time.time_ns():x}-{os.getpid()}-{secrets.token_hex(4)}"
        path.mkdir(mode=0o700)  # whoever could open it could also lock it
        try:
            folder = lock(path)
        except OSError:  # for example a file system without locks: each refused event would leave a folder
            with suppress(OSError):
                path.rmdir()
            raise
        if folder:
            return folder


def take_back(root: Path) -> Folder | None:
    """Of the folders whose process has ended, locks the one that was used last; None if there is none."""
    try:
        found = sorted(paths(root), key=_changed_at, reverse=True)
    except OSError:
        return None
    for path in found:
        with suppress(OSError):
            if folder := lock_readable(path):
                return folder
    return None


def paths(root: Path) -> list[Path]:
    """All folders, the oldest first. Raises OSError."""
    return sorted(path for path in root.iterdir() if path.name.startswith(_PREFIX))


def lock_readable(path: Path) -> Folder | None:
    """As `lock`. Raises OSError if the folder cannot be read."""
    if folder := lock(path):
        try:
            folder.files()
        except OSError:
            folder.release()
            raise
    return folder


def lock(path: Path) -> Folder | None:
    """None if another process has it, or had it and removed it. Raises OSError."""
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


def _changed_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
