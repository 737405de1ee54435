"""Takes over the folders of processes that have ended."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path

from receiver.journal import folder as folders
from receiver.journal.folder import Folder

log = logging.getLogger("receiver.journal")


class Orphans:
    """The orphans below one directory. For one thread."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._taken: dict[Path, Folder] = {}
        self._seen_at: dict[Path, float] = {}
        self._failures: dict[Path, str] = {}
        #: How many folders cannot be taken over, the directory itself included.
        self.unreadable = 0
        #: How many have events but are left to the process that had them, which may be restarting.
        self.waiting = 0

    def take(self, patience_seconds: float) -> Iterator[tuple[Folder, list[Path]]]:
        """Locks each folder whose process has been gone for that long, the oldest first, and yields the files in it.

        There may be no files. A folder that cannot be locked or read holds up no other. The caller must exhaust this.
        """
        now = time.monotonic()
        seen_at: dict[Path, float] = {}
        failures: dict[Path, str] = {}
        waiting = 0
        try:
            found = folders.paths(self._root)
        except OSError as error:
            found, failures[self._root] = [], str(error.strerror)
        for path in found:
            try:
                folder = folders.lock_readable(path)
                files = folder.files() if folder else []
            except OSError as error:
                failures[path] = str(error.strerror)
                continue
            if folder is None:
                continue
            since = self._seen_at.get(path, now)
            if now - since < patience_seconds:
                folder.release()
                seen_at[path] = since
                waiting += bool(files)
            else:
                if files:
                    self._taken[path] = folder
                yield folder, files
                if not files:
                    folder.remove()
        self._seen_at, self.waiting = seen_at, waiting
        self._note(failures)

    def _note(self, failures: dict[Path, str]) -> None:
        for path, why in failures.items():
            if self._failures.get(path) != why:
                log.error("the events in %s cannot be taken over; it is tried again: %s", path, why)
        self._failures = failures
        self.unreadable = len(failures)

    def has(self, path: Path) -> bool:
        return path in self._taken

    def remove(self, path: Path) -> None:
        """Removes a folder that was taken and is now empty."""
        self._taken.pop(path).remove()

    def release(self) -> None:
        """Leaves all taken folders to the next process."""
        while self._taken:
            self._taken.popitem()[1].release()
