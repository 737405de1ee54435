"""Appends events to a file in the folder of this process, and syncs it to the disk."""

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from receiver.journal import folder as folders
from receiver.journal.folder import Folder
from receiver.journal.segment import Segment

SEGMENT_BYTES = 4 << 20


class Writer:
    """root: the journal directory. lock: the journal's; callers hold it, except of `sync` and `close`."""

    def __init__(self, root: Path, lock: threading.Lock) -> None:
        self._root = root
        self._lock = lock
        self._syncing = threading.Lock()
        self._descriptor = -1
        self._unsynced: list[int] = []  # descriptors of full segments
        self._number = 0
        self.folder: Folder | None = None
        #: Files in our folder that are older than this process; the journal takes them and clears the list.
        self.earlier: list[Path] = []
        self.active: Segment | None = None
        #: How many events were appended; up to which of them, after a failed sync, the disk may lack some.
        self.appended = 0
        self.unsafe_to = 0

    def open_folder(self) -> Folder:
        """Our folder: the one that we have, one that a process before us had, or a new one. Raises OSError."""
        if self.folder and not self.folder.path.exists():  # somebody removed it
            self.folder.release()
            self.folder = None
        if not self.folder:
            self.folder = folders.take_back(self._root) or folders.create(self._root)
            self.earlier = self.folder.files()
            self._number = max((int(path.stem) for path in self.earlier if path.stem.isdecimal()), default=0)
        return self.folder

    def write(self, line: bytes) -> Segment:
        """Appends a line; returns the segment that has it, a new one if this is its first line. Raises OSError."""
        segment = self.active = self.active or self._new_segment()
        if os.write(self._descriptor, line) != len(line):
            # The disk is full. Half a line is ignored only at the end of a file, so never write after it.
            self.seal()
            if not segment.lines:
                segment.path.unlink(missing_ok=True)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        segment.size += len(line)
        segment.lines += 1
        self.appended += 1
        if segment.size >= SEGMENT_BYTES:
            self.seal()
        return segment

    def _new_segment(self) -> Segment:
        folder = self.open_folder()
        path = folder.file(self._number + 1)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._number += 1
        return Segment(path, oldest_ms=time.time_ns() // 1_000_000)

    def seal(self) -> None:
        """Ends the file; the next line begins another."""
        if self.active:
            self._unsynced.append(self._descriptor)
            self.active = None

    def sync(self) -> None:
        """Waits until the disk has all that was appended before.

        Raises OSError if it may not have it. Then `unsafe_to` says up to which event, for others that waited.
        """
        with self._syncing:  # one sync must not take for done what another has just begun
            with self._lock:
                full, active = list(self._unsynced), self._descriptor if self.active else None
                folder = self.folder
            descriptors = full if active is None else [*full, active]
            failure = _sync(os.fsync, folder.descriptor) if descriptors and folder else None
            for descriptor in descriptors:
                failure = _sync(os.fdatasync, descriptor) or failure
            with self._lock:
                del self._unsynced[: len(full)]
                if failure:
                    # The kernel reports this only once, and then considers the pages written.
                    self.unsafe_to = self.appended
                    if self._descriptor == active:
                        self.seal()
            for descriptor in full:
                os.close(descriptor)
            if failure:
                raise failure

    def close(self, keep_folder: bool) -> None:
        """Syncs. Leaves the folder to the next process if it has files or with `keep_folder`. Raises OSError."""
        with self._lock:
            self.seal()
        try:
            self.sync()
        finally:
            folder, self.folder = self.folder, None
            if folder and (keep_folder or folder.files()):
                folder.release()
            elif folder:
                folder.remove()


def _sync(how: Callable[[int], None], descriptor: int) -> OSError | None:
    try:
        how(descriptor)
    except OSError as error:
        return error
    return None
