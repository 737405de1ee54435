"""The journal: events that were accepted and that Redis may not have yet, on disk.

A plain append-only file rather than SQLite: one write(2) an event survives a SIGKILL as surely as a commit,
at a fraction of its cost, and forgetting what Redis has is an unlink, which never waits for a lock that the
event loop wants. docs/design.md has the measurement.

The event loop's thread appends; the relay's thread reads, settles and adopts; others call `sync`. A lock
guards the few fields that they share, and is never held during a wait for the disk but the append itself.
"""

import logging
import secrets
import threading
import time
from collections import deque
from pathlib import Path

from receiver.journal.orphans import Orphans
from receiver.journal.segment import Batch, Segment, measure, read_batch, to_line
from receiver.journal.writer import Writer
from shared.errors import Unavailable
from shared.events import received_at

UNREADABLE_SECONDS = 10.0
LINE_SECONDS = 10.0
_DAMAGED = ".damaged"
_LIMIT = "the journal has reached PRESENCE_JOURNAL_MAX_BYTES"

log = logging.getLogger("receiver.journal")


class Journal:
    """root: the directory, which several receivers may share. max_bytes: of events Redis does not have.

    A process that starts goes on with the folder of one that has ended, if there is any, as its own. What it finds
    beyond that is carried to Redis, but does not count against its limit: refusing new events would free nothing of it.
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        self._root = root
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._writer = Writer(root, self._lock)
        self._without_folder = secrets.token_hex(8)
        self._orphans = Orphans(root)
        self._segments: deque[Segment] = deque()  # oldest first
        #: What Redis does not have: bytes and events; of the bytes, those that other processes accepted.
        self.waiting_bytes = 0
        self.waiting_events = 0
        self._adopted_bytes = 0
        #: What Redis has, and might still lose.
        self.kept_bytes = 0
        self.kept_events = 0
        self._wanted = 0  # bytes that were refused for the limit
        self._next_line = 0.0
        self._told = False
        #: Why the last append failed, or "".
        self.trouble = ""

    @property
    def identity(self) -> str:
        """Whose journal this is: no other's, and the same after a restart that finds it again."""
        folder = self._writer.folder
        return folder.identity if folder else self._without_folder

    @property
    def appended(self) -> int:
        """How many events were appended."""
        return self._writer.appended

    @property
    def unsafe_to(self) -> int:
        """Up to which of them nobody knows whether the disk has them, as a sync failed."""
        return self._writer.unsafe_to

    @property
    def room_bytes(self) -> int:
        """What it takes until the limit."""
        return max(0, self._max_bytes - (self.waiting_bytes - self._adopted_bytes))

    def append(self, payload: bytes) -> None:
        """Writes one event; it survives a SIGKILL from here on, and a power loss from the next `sync` on.

        Raises Unavailable, whose text is for whoever sent the event, where it could not be written.
        """
        line = to_line(payload)
        with self._lock:
            if self.waiting_bytes - self._adopted_bytes + len(line) > self._max_bytes:
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
            if self.waiting_bytes - self._adopted_bytes + self._wanted > self._max_bytes:
                return _LIMIT
            try:
                self._writer.open_folder()
                if self.trouble:
                    self._write(to_line(b""))
            except OSError as error:
                return f"the journal cannot be written: {error.strerror}"
            if self.trouble:
                self._note("")
            return ""

    def _note(self, trouble: str) -> None:
        """Keeps the trouble, or "" for its end, and logs it: at its limit a journal may change its mind often."""
        self.trouble = trouble
        if trouble and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_SECONDS
            self._told = True
            log.error("%s: events are refused", trouble)
        elif self._told and not trouble:
            self._told = False
            log.warning("the journal takes events again")

    def _write(self, line: bytes) -> None:
        segment = self._writer.write(line)
        if segment.lines == 1:
            self._segments.append(segment)
        self.waiting_bytes += len(line)
        self.waiting_events += 1

    def next_batch(self, most: int) -> Batch | None:
        """The oldest events that Redis does not have, or None where there are none.

        A file that cannot be read holds up no other: it is tried again after UNREADABLE_SECONDS.
        """
        now = time.monotonic()
        with self._lock:
            due = [each for each in self._segments if each.unreadable_until <= now]
        for segment in due:
            try:
                if not segment.measured:
                    self._measure(segment)
                if segment.pushed < segment.size:
                    batch = read_batch(segment, most)
                    if batch.payloads:
                        segment.oldest_ms = received_at(batch.payloads[0])
                    return batch
            except FileNotFoundError:
                self._give_up(segment)
            except OSError as error:
                self._put_off(segment, error)
        return None

    def _put_off(self, segment: Segment, error: OSError) -> None:
        segment.unreadable_until = time.monotonic() + UNREADABLE_SECONDS
        log.error("the journal file %s cannot be read, later again: %s", segment.path, error.strerror)

    def _give_up(self, segment: Segment) -> None:
        """Somebody has removed a file of ours."""
        with self._lock:
            if segment is self._writer.active:
                self._writer.seal()
            lost = segment.lines - segment.pushed_lines
            self._count_waiting(segment, segment.pushed - segment.size, -lost)
            self._count_kept(segment.settled - segment.pushed, segment.settled_lines - segment.pushed_lines)
            self._segments.remove(segment)
        log.error("the journal file %s is gone, and %d accepted events with it", segment.path, lost)
        self._remove_if_empty(segment.path.parent)

    def _count_waiting(self, segment: Segment, size: int, events: int) -> None:
        self.waiting_bytes += size
        self.waiting_events += events
        if segment.adopted:
            self._adopted_bytes += size

    def _count_kept(self, size: int, events: int) -> None:
        self.kept_bytes += size
        self.kept_events += events

    def unreadable_files(self) -> int:
        """How many files, and folders that should be taken over, could not be read when that was tried last."""
        with self._lock:
            return sum(1 for each in self._segments if each.unreadable_until) + self._orphans.unreadable

    def oldest_ms(self) -> int | None:
        """About when the oldest event that Redis does not have was received, Unix milliseconds; None: there is none.

        0 where nobody can tell.
        """
        with self._lock:
            return min((each.oldest_ms for each in self._segments if each.pushed < each.size), default=None)

    def knows_all(self) -> bool:
        """False where accepted events may wait in this directory that `next_batch` cannot give now."""
        return not self._writer.earlier and not self._orphans.waiting and not self.unreadable_files()

    def pushed(self, batch: Batch) -> None:
        """Redis has these events now, if it does not lose them with its memory."""
        segment = batch.segment
        with self._lock:
            size = batch.end - segment.pushed
            self._count_waiting(segment, -size, -batch.lines)
            self._count_kept(size, batch.lines)
            segment.pushed = batch.end
            if batch.payloads:
                segment.oldest_ms = received_at(batch.payloads[-1])  # what follows came later
            segment.unreadable_until = 0.0
            segment.pushed_lines += batch.lines

    def settled(self, batch: Batch) -> None:
        """Redis will not lose these events any more: they may be forgotten here. Raises OSError."""
        segment = batch.segment
        with self._lock:
            if segment not in self._segments:
                return
            self._count_kept(segment.settled - batch.end, -batch.lines)
            segment.settled = batch.end
            segment.settled_lines += batch.lines
            if segment.settled < segment.size:
                return
            if segment is self._writer.active:
                self._writer.seal()
            self._segments.remove(segment)
        self._forget(segment)

    def is_over_limit(self) -> bool:
        """Whether what Redis has and what it does not have are more than the limit, taken together."""
        return self.kept_bytes > self.room_bytes

    def push_again(self) -> int:
        """Redis has lost its memory: whatever is not settled waits again. Says how many events."""
        with self._lock:
            before = self.waiting_events
            for segment in self._segments:
                size, lines = segment.pushed - segment.settled, segment.pushed_lines - segment.settled_lines
                self._count_waiting(segment, size, lines)
                self._count_kept(-size, -lines)
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
        self._remove_if_empty(segment.path.parent)

    def _remove_if_empty(self, path: Path) -> None:
        with self._lock:
            if not self._orphans.has(path) or any(each.path.parent == path for each in self._segments):
                return
        self._orphans.remove(path)

    def adopt_orphans(self, patience_seconds: float = 0.0) -> list[str]:
        """Takes over what processes that have ended left, before anything newer; gives their identities.

        patience_seconds: so long a folder is left alone, for its process may be starting again.
        """
        with self._lock:
            found = [Segment(path, measured=False) for path in self._writer.earlier]
            self._writer.earlier = []
        owners = []
        for folder, files in self._orphans.take(patience_seconds):
            owners.append(folder.identity)
            found += [Segment(path, adopted=True, measured=False) for path in files]
        found.sort(key=lambda segment: segment.path)
        with self._lock:
            self._segments.extendleft(reversed(found))
        for segment in found:
            try:
                self._measure(segment)
            except FileNotFoundError:
                self._give_up(segment)
            except OSError as error:
                self._put_off(segment, error)
        if events := sum(segment.lines for segment in found):
            # After a clean stop too: what was pushed in the last seconds goes again, for Redis might have lost it.
            log.info("took over %d events that were left in the journal", events)
        return owners

    def _measure(self, segment: Segment) -> None:
        """Finds out what another process left in a file. Raises OSError."""
        segment.oldest_ms = received_at(measure(segment))
        if segment.zeros and segment.size:
            log.warning(
                "the journal file %s ends in %d zero bytes, as after a power cut: what was accepted in the last moment "
                "before that may be missing",
                segment.path,
                segment.zeros,
            )
        with self._lock:
            segment.unreadable_until = 0.0
            self._count_waiting(segment, segment.size, segment.lines)
            if segment.size:
                return
            self._segments.remove(segment)
        self._forget(segment)

    def damaged_files(self) -> int:
        """How many files were set aside and wait for a person to look at them."""
        return sum(1 for _ in self._root.glob(f"*{_DAMAGED}"))

    def sync(self) -> None:
        """Waits until the disk has all that was appended before. Raises OSError; see `unsafe_to`."""
        self._writer.sync()

    def close(self, keep_folder: bool = False) -> None:
        """Syncs, and leaves what is not settled to the next process. Raises OSError.

        keep_folder: where it is empty too, so that the next process is taken for this one.
        """
        self._orphans.release()
        self._writer.close(keep_folder)
