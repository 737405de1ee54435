"""The journal: events that were accepted and that Redis may not have yet, on disk.

A plain append-only file rather than SQLite: one write(2) an event survives a SIGKILL as surely as a commit,
at a fraction of its cost, and forgetting what Redis has is an unlink, which never waits for a lock that the
event loop wants. docs/design.md has the measurement.

The event loop's thread appends; the relay's thread reads, settles and adopts; a third calls `sync`. A lock
guards the few fields that they share, and is never held during a wait for the disk but the append itself.
"""

import errno
import logging
import os
import threading
import time
from collections import deque
from pathlib import Path

from receiver.journal import folder as folders
from receiver.journal.folder import Folder
from receiver.journal.segment import Batch, Segment, measure, read_batch, to_line
from shared.errors import Unavailable

SEGMENT_BYTES = 4 << 20
UNREADABLE_SECONDS = 10.0
LINE_SECONDS = 10.0
_SUFFIX = ".log"
_DAMAGED = ".damaged"
_LIMIT = "the journal has reached PRESENCE_JOURNAL_MAX_BYTES"

log = logging.getLogger("receiver.journal")


class Journal:
    """root: the directory, which several receivers may share. max_bytes: of events Redis does not have."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        self._root = root
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._own: Folder | None = None
        self._adopted: dict[Path, Folder] = {}
        self._segments: deque[Segment] = deque()  # oldest first
        self._active: Segment | None = None
        self._descriptor = -1
        self._unsynced: list[int] = []  # of segments that are full
        self._names = 0
        #: What Redis does not have: bytes and events.
        self.waiting_bytes = 0
        self.waiting_events = 0
        self._wanted = 0  # bytes that were refused for the limit
        self._next_line = 0.0
        self._told = False
        #: Why the last append failed, or "".
        self.trouble = ""

    def append(self, payload: bytes) -> None:
        """Writes one event; it survives a SIGKILL from here on, and a power loss from the next `sync` on.

        Raises Unavailable, whose text is for whoever sent the event, where it could not be written.
        """
        line = to_line(payload)
        with self._lock:
            if self.waiting_bytes + len(line) > self._max_bytes:
                self._wanted = len(line)
                self._note(_LIMIT)
                raise Unavailable(_LIMIT)
            try:
                self._write(line)
            except OSError as error:
                self._note(f"the journal cannot be written: {error.strerror}")
                raise Unavailable(self.trouble) from error
            if self.trouble:
                self._note("")

    def check(self) -> str:
        """Why an event would be refused now, or "". Where the last one was, tries the disk again."""
        with self._lock:
            if self.waiting_bytes + self._wanted > self._max_bytes:
                return _LIMIT
            try:
                self._own = self._own or folders.create(self._root)
                if self.trouble:
                    self._write(to_line(b""))
            except OSError as error:
                return f"the journal cannot be written: {error.strerror}"
            if self.trouble:
                self._note("")
            return ""

    def _note(self, trouble: str) -> None:
        """Keeps the trouble, or "" for its end, and says so in the log: at its limit a journal may flutter."""
        self.trouble = trouble
        if trouble and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_SECONDS
            self._told = True
            log.error("%s: events are refused", trouble)
        elif self._told and not trouble:
            self._told = False
            log.warning("the journal takes events again")

    def _write(self, line: bytes) -> None:
        if self._active is None:
            self._active = self._new_segment()
        if os.write(self._descriptor, line) != len(line):
            # The disk is full. Half a line at the end of a file is ignored, so never write after it.
            self._seal()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._active.size += len(line)
        self._active.lines += 1
        self.waiting_bytes += len(line)
        self.waiting_events += 1
        if self._active.size >= SEGMENT_BYTES:
            self._seal()

    def _new_segment(self) -> Segment:
        if self._own and not self._own.path.exists():  # somebody tidied up
            self._own.release()
            self._own = None
        self._own = self._own or folders.create(self._root)
        self._names += 1
        path = self._own.path / f"{self._names:08}{_SUFFIX}"
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        segment = Segment(path)
        self._segments.append(segment)
        return segment

    def _seal(self) -> None:
        self._unsynced.append(self._descriptor)
        self._active = None

    def sync(self) -> None:
        """Waits until the disk has all that was appended before. Raises OSError."""
        with self._lock:
            descriptors, self._unsynced = self._unsynced, []
            if self._active is not None:
                descriptors.append(os.dup(self._descriptor))
            folder = self._own
        try:
            if descriptors and folder:
                os.fsync(folder.descriptor)
            for descriptor in descriptors:
                os.fdatasync(descriptor)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def next_batch(self, most: int) -> Batch | None:
        """The oldest events that Redis does not have, or None where there are none.

        A file that cannot be read holds up no other: it is tried again after UNREADABLE_SECONDS.
        """
        now = time.monotonic()
        with self._lock:
            unpushed = [each for each in self._segments if each.pushed < each.size and each.unreadable_until <= now]
        for segment in unpushed:
            try:
                return read_batch(segment, most)
            except FileNotFoundError:
                self._give_up(segment)
            except OSError as error:
                segment.unreadable_until = now + UNREADABLE_SECONDS
                log.error("the journal file %s cannot be read, later again: %s", segment.path, error.strerror)
        return None

    def _give_up(self, segment: Segment) -> None:
        """Somebody has removed a file of ours."""
        with self._lock:
            if segment is self._active:
                self._seal()
            lost = segment.lines - segment.pushed_lines
            self.waiting_bytes -= segment.size - segment.pushed
            self.waiting_events -= lost
            self._segments.remove(segment)
        log.error("the journal file %s is gone, and %d accepted events with it", segment.path, lost)

    def unreadable_files(self) -> int:
        """How many files could not be read when that was tried last."""
        with self._lock:
            return sum(1 for each in self._segments if each.unreadable_until)

    def pushed(self, batch: Batch) -> None:
        """Redis has these events now, if it does not lose them with its memory."""
        with self._lock:
            self.waiting_bytes -= batch.end - batch.segment.pushed
            self.waiting_events -= batch.lines
            batch.segment.pushed = batch.end
            batch.segment.unreadable_until = 0.0
            batch.segment.pushed_lines += batch.lines

    def settled(self, batch: Batch) -> None:
        """Redis will not lose these events any more: they may be forgotten here. Raises OSError."""
        segment = batch.segment
        with self._lock:
            segment.settled = batch.end
            segment.settled_lines += batch.lines
            if segment.settled < segment.size:
                return
            if segment is self._active:
                self._seal()
            self._segments.remove(segment)
        self._forget(segment)

    def push_again(self) -> int:
        """Redis has lost its memory: whatever is not settled waits again. Says how many events."""
        with self._lock:
            before = self.waiting_events
            for segment in self._segments:
                self.waiting_bytes += segment.pushed - segment.settled
                self.waiting_events += segment.pushed_lines - segment.settled_lines
                segment.pushed = segment.settled
                segment.pushed_lines = segment.settled_lines
            return self.waiting_events - before

    def _forget(self, segment: Segment) -> None:
        if segment.damaged and segment.path.exists():
            aside = self._root / f"{segment.path.parent.name}-{segment.path.name}{_DAMAGED}"
            segment.path.rename(aside)
            log.error(
                "%d damaged lines in the journal were passed over; the file was set aside as %s",
                segment.damaged,
                aside,
            )
        else:
            segment.path.unlink(missing_ok=True)
        adopted = self._adopted.get(segment.path.parent)
        with self._lock:
            if not adopted or any(each.path.parent == adopted.path for each in self._segments):
                return
        del self._adopted[adopted.path]
        adopted.remove()

    def adopt_orphans(self) -> None:
        """Takes over what processes that are gone have left, before anything newer. Raises OSError."""
        found: list[Segment] = []
        try:
            for folder in folders.adopt_orphans(self._root):
                try:
                    found += self._take_over(folder)
                except OSError as error:  # the next folder may be better, and this one later
                    folder.release()
                    log.error("cannot take over %s: %s", folder.path, error.strerror)
        finally:
            with self._lock:
                self._segments.extendleft(reversed(found))
                self.waiting_bytes += sum(segment.size for segment in found)
                self.waiting_events += sum(segment.lines for segment in found)

    def _take_over(self, folder: Folder) -> list[Segment]:
        segments = [Segment(path) for path in sorted(folder.path.glob(f"*{_SUFFIX}"))]
        for segment in segments:
            measure(segment)
        found = [segment for segment in segments if segment.size]
        for segment in segments:
            if not segment.size:
                self._forget(segment)
        if found:
            self._adopted[folder.path] = folder
            # After a clean stop too: what was pushed in the last seconds goes again, for Redis might have lost it.
            log.info("took over %d events that %s had left", sum(s.lines for s in found), folder.path.name)
        else:
            folder.remove()
        return found

    def damaged_files(self) -> int:
        """How many files were set aside and wait for a person to look at them."""
        return sum(1 for _ in self._root.glob(f"*{_DAMAGED}"))

    def close(self) -> None:
        """Syncs, and leaves what is not settled to the next process. Raises OSError."""
        with self._lock:
            if self._active is not None:
                self._seal()
        self.sync()
        for folder in self._adopted.values():
            folder.release()
        if self._own:
            if any(self._own.path.iterdir()):
                self._own.release()
            else:
                self._own.remove()
            self._own = None
