"""A listing that may be long: lines on standard output, and progress on a terminal."""

import os
import select
import sys
import time
from types import TracebackType
from typing import Self, TextIO

from shared.errors import PresenceError

PROGRESS_SECONDS = 0.2


class Listing:
    """For use in `with`. It ends quietly on Ctrl-C (exit code 1: not all was listed, and the last line may be cut) and
    when the reader of the output closes it, as `head` does (exit code 0: that was all that was wanted). Raises
    PresenceError if the output cannot be written, to a full disk for instance.

    The progress line goes to standard error if that is a terminal, and disappears when lines follow.
    """

    def __init__(self, out: TextIO | None = None, terminal: TextIO | None = None) -> None:
        if not sys.stdout:  # the parent process closed it
            raise PresenceError("there is no standard output to write to")
        self._out = out or sys.stdout
        self._terminal = terminal or sys.stderr
        self._is_watched = self._terminal.isatty()
        self._next = time.monotonic() + PROGRESS_SECONDS
        self._is_drawn = False

    def line(self, text: str) -> None:
        self._clear()
        self._out.write(f"{text}\n")

    def flush(self) -> None:
        """Shows the lines at once. Raises BrokenPipeError if nobody reads, even if there are no lines."""
        self._out.flush()
        poll = select.poll()
        poll.register(self._out, 0)
        if any(event & select.POLLERR for _, event in poll.poll(0)):
            raise BrokenPipeError

    def progress(self, text: str, *numbers: int) -> None:
        """Shows text with its numbers filled in; cheap to call for each item."""
        if self._is_watched and time.monotonic() > self._next:
            self._next = time.monotonic() + PROGRESS_SECONDS
            self._out.flush()
            self._terminal.write("\r\x1b[K" + text.format(*numbers))
            self._terminal.flush()
            self._is_drawn = True

    def _clear(self) -> None:
        if self._is_drawn:
            self._terminal.write("\r\x1b[K")
            self._terminal.flush()
            self._is_drawn = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        try:
            self._clear()
            if not isinstance(error, OSError | KeyboardInterrupt):
                self._out.flush()
                return False
        except OSError as failure:
            error = failure
        # Python flushes again as it ends: that would fail again, or wait for a full pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._out.fileno())
        if isinstance(error, KeyboardInterrupt):
            sys.exit(1)
        if not isinstance(error, BrokenPipeError):
            raise PresenceError(f"the output cannot be written: {error}")
        return True
