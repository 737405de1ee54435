"""The journal: accepted events that Redis may not have yet, on disk.

It is a plain append-only file, not SQLite: one write(2) for each event survives a SIGKILL as surely as a commit, at a
fraction of the cost, and to forget what Redis has is an unlink, which needs no lock for which the event loop would
wait. docs/design.md has the measurement.

The event loop's thread appends; the relay's thread reads, settles and adopts; others call `sync`. A lock guards the few
fields that they share. Except during the append itself, it is never held while waiting for the disk.
"""

import logging
import secrets
import threading
import time
from collections import deque
from pathlib import Path

from receiver.journal.orphans import Orphans
from receiver.journal.recent import Recent
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
    """root: the directory, which several receivers may share. max_bytes: limit for events that Redis does not have.

    A process that starts takes the folder of one that has ended, if any, as its own. The events in further folders are
    pushed to Redis too, but do not count against its limit: refusing new events would free none of them.
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        self._root = root
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._writer = Writer(root, self._lock)
        self._without_folder = secrets.token_hex(8)
        self._orphans = Orphans(root)
        self._segments: deque[Segment] = deque()  # oldest first
        self._recent = Recent()
        #: What Redis does not have: bytes and events, and how many of these bytes other processes accepted.
        self.waiting_bytes = 0
        self.waiting_events = 0
        self._adopted_bytes = 0
        #: What Redis has but might still lose.
        self.kept_bytes = 0
        self.kept_events = 0
        self._wanted = 0  # bytes of the line that was refused because of the limit
        self._next_line = 0.0
        self._told = False
        #: Why the last append failed, or "".
        self.trouble = ""

    @property
    def identity(self) -> str:
        """Identifies the journal: unique, and the same after a restart that finds it again."""
        folder = self._writer.folder
        return folder.identity if folder else self._without_folder

    @property
    def appended(self) -> int:
        """How many events were appended."""
        return self._writer.appended

    @property
    def unsafe_to(self) -> int:
        """Up to which of them it is unknown whether the disk has them, because a sync failed."""
        return self._writer.unsafe_to

    @property
    def room_bytes(self) -> int:
        """How many bytes it can take before it reaches its limit."""
        return max(0, self._max_bytes - (self.waiting_bytes - self._adopted_bytes))

    def append(self, payload: bytes) -> None:
        """Writes one event. After this it survives a SIGKILL, and after the next `sync` a power loss.

        Raises Unavailable, with a text for the sender, if the event could not be written.
        """
        line = to_line(payload)
        with self._lock:
            if self.waiting_bytes - self._adopted_bytes + len(line) > self._max_bytes:
                self._wanted = len(line)
                self._note(_LIMIT)
                raise Unavailable(_LIMIT)
            try:
                self._write(payload, line)
            except OSError as error:
                self._note(f"the journal cannot be written: {error.strerror}")
                raise Unavailable(self.trouble) from error
            if self.trouble:
                self._note("")

    def check(self) -> str:
        """Why an event would be refused now, or "". If the last one was refused, tries the disk again."""
        with self._lock:
            if self.waiting_bytes - self._adopted_bytes + self._wanted > self._max_bytes:
                return _LIMIT
            try:
                self._writer.open_folder()
                if self.trouble:
                    self._write(b"", to_line(b""))
            except OSError as error:
                return f"the journal cannot be written: {error.strerror}"
            if self.trouble:
                self._note("")
            return ""

    def _note(self, trouble: str) -> None:
        """Keeps the trouble, or "" for its end, and logs it, but not too often: at its limit it may alternate."""
        self.trouble = trouble
        if trouble and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_SECONDS
            self._told = True
            log.error("%s: events are refused", trouble)
        elif self._told and not trouble:
            self._told = False
            log.warning("the journal takes events again")

    def _write(self, payload: bytes, line: bytes) -> None:
        segment = self._writer.write(line)
        if segment.lines == 1:
            self._segments.append(segment)
        self._recent.add(segment, payload)
        self.waiting_bytes += len(line)
        self.waiting_events += 1

    def next_batch(self, most: int) -> Batch | None:
        """The oldest events that Redis does not have, or None if there are none.

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
                    batch = self._recent_batch(segment, most) or read_batch(segment, most)
                    if batch.payloads:
                        segment.oldest_ms = received_at(batch.payloads[0])
                    return batch
            except FileNotFoundError:
                self._give_up(segment)
            except OSError as error:
                self._put_off(segment, error)
        return None

    def _recent_batch(self, segment: Segment, most: int) -> Batch | None:
        with self._lock:
            batch = self._recent.take(segment, most)
        if batch and not segment.path.exists():
            log.error("the journal file %s is gone; its last %d events are still in memory", segment.path, batch.lines)
            with self._lock:
                if segment is self._writer.active:
                    self._writer.seal()
        return batch

    def _put_off(self, segment: Segment, error: OSError) -> None:
        segment.unreadable_until = time.monotonic() + UNREADABLE_SECONDS
        log.error("the journal file %s cannot be read; trying again later: %s", segment.path, error.strerror)

    def _give_up(self, segment: Segment) -> None:
        """Forgets a file that somebody has removed."""
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
        """About when the oldest event that Redis does not have was received, in Unix milliseconds.

        None if there is none, 0 if it is unknown.
        """
        with self._lock:
            return min((each.oldest_ms for each in self._segments if each.pushed < each.size), default=None)

    def knows_all(self) -> bool:
        """False if accepted events may wait in this directory that `next_batch` cannot give now."""
        return not self._writer.earlier and not self._orphans.waiting and not self.unreadable_files()

    def pushed(self, batch: Batch) -> None:
        """Notes that Redis has these events now, unless it loses its memory."""
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
        """Forgets these events: Redis can no longer lose them. Raises OSError."""
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
        """Whether what Redis has and what it does not have exceed the limit together."""
        return self.kept_bytes > self.room_bytes

    def push_again(self) -> int:
        """Makes all unsettled events wait again, because Redis has lost its memory. Returns how many."""
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
                "%d damaged lines in the journal were skipped; the file was set aside as %s",
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
        """Takes over the events of processes that have ended, to be read before newer ones; returns their identities.

        patience_seconds: how long a folder is left alone, because its process may be restarting.
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
            # Also after a clean stop: events of the last seconds are pushed again, since Redis might have lost them.
            log.info("took over %d events that were left in the journal", events)
        return owners

    def _measure(self, segment: Segment) -> None:
        """Finds out what another process left in a file. Raises OSError."""
        segment.oldest_ms = received_at(measure(segment))
        if segment.zeros and segment.size:
            log.warning(
                "the journal file %s ends in %d zero bytes, as after a power cut: the last events accepted before that "
                "may be missing",
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
        """How many files were set aside for a person to examine."""
        return sum(1 for _ in self._root.glob(f"*{_DAMAGED}"))

    def sync(self) -> None:
        """Waits until the disk has all that was appended before. Raises OSError; see `unsafe_to`."""
        self._writer.sync()

    def close(self, keep_folder: bool = False) -> None:
        """Syncs, and leaves events that are not settled to the next process. Raises OSError.

        keep_folder: keep it even if it is empty, so that the next process has the same identity.
        """
        self._orphans.release()
        self._writer.close(keep_folder)
