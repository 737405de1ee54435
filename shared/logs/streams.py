"""Standard streams that never hold a program up, whether anything reads them or not.

A write to a pipe that nothing empties, or to a terminal after Ctrl-S, blocks. A program that logs would then stand
still: it would send no answers and no heartbeats, and ignore SIGTERM. So a separate thread does the writing.
"""

import atexit
import io
import logging
import os
import select
import sys
import threading
import time
from collections import deque
from contextlib import suppress

#: How many bytes may wait to be written. Lines that do not fit are left out and counted.
MAX_BYTES = 1 << 20
#: How long the end of the program waits for a reader to take what is left.
FLUSH_SECONDS = 1.0

log = logging.getLogger("log")


class QueuedStream(io.TextIOBase):
    """Takes text without ever blocking, and writes it to a file descriptor, line by line, in a daemon thread.

    encoding: characters that it lacks are written as escapes.
    """

    errors = "backslashreplace"

    def __init__(self, descriptor: int, encoding: str, max_bytes: int = 0) -> None:
        self._descriptor = descriptor
        self._encoding = encoding
        self._max_bytes = max_bytes or MAX_BYTES
        self._begun = ""  # a line that has no end yet
        self._lines: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._unsaid = 0  # lines dropped since the last one that said so
        self.dropped = 0
        # Reentrant: while this thread holds it, the garbage collector may run code that writes a warning.
        self._changed = threading.Condition(threading.RLock())
        threading.Thread(target=self._write_for_ever, name="log", daemon=True).start()

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a plain attribute there
        return self._encoding

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        with suppress(OSError):
            return os.isatty(self._descriptor)
        return False

    def write(self, text: str) -> int:
        with self._changed:
            *lines, self._begun = (self._begun + text).split("\n")
            for line in lines:
                self._put(f"{line}\n".encode(self._encoding, self.errors))
        return len(text)

    def _put(self, line: bytes) -> None:
        if self._waiting_bytes + len(line) > self._max_bytes:
            self._drop()
            return
        self._lines.append(line)
        self._waiting_bytes += len(line)
        self._changed.notify_all()

    def _drop(self) -> None:
        self.dropped += 1
        self._unsaid += 1

    def flush(self) -> None:
        """Does not wait; `drain` does."""

    def drain(self, seconds: float = FLUSH_SECONDS) -> None:
        """Waits until all is written, but no longer than that."""
        with self._changed:
            if self._begun:
                self.write("\n")
            self._changed.wait_for(lambda: not self._waiting_bytes, seconds)

    def _write_for_ever(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines)
                line = self._lines.popleft()
            written = self._write_line(line)
            with self._changed:
                if not written:
                    self._drop()
                self._waiting_bytes -= len(line)
                unsaid, self._unsaid = (self._unsaid, 0) if written and not self._lines else (0, self._unsaid)
                self._changed.notify_all()
            if unsaid:
                log.warning("%d log lines were left out: nothing read them in time", unsaid)

    def _write_line(self, line: bytes) -> bool:
        """Uses one call if the kernel allows, so that programs that share a pipe do not mix up each other's lines."""
        while line:
            try:
                line = line[os.write(self._descriptor, line) :]
            except BlockingIOError:  # another program that shares the descriptor has made it non-blocking
                select.select([], [self._descriptor], [])
            except OSError:  # the reader is gone or the disk is full: the next line may succeed
                return False
        return True


_queued: list[QueuedStream] = []


def take_over() -> None:
    """To be called first in a long-running program: from here on nothing that it prints or logs can hold it up.

    Closed descriptors 0 to 2 are opened on /dev/null: otherwise one of our sockets or files would get their numbers,
    and output for standard error would be written there.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number
    encoding = sys.stderr.encoding if sys.stderr else "utf-8"
    sys.stdout, sys.stderr = QueuedStream(1, encoding), QueuedStream(2, encoding)
    _queued[:] = [sys.stdout, sys.stderr]
    atexit.register(_drain)


def lines_dropped() -> int:
    """How many lines this program has left out so far."""
    return sum(stream.dropped for stream in _queued)


def _drain() -> None:
    give_up_at = time.monotonic() + FLUSH_SECONDS
    for stream in _queued:
        stream.drain(max(0.0, give_up_at - time.monotonic()))
