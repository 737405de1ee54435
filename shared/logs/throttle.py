"""Limits log lines about what may happen thousands of times."""

import logging
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any


class LogThrottle:
    """Lets through the first lines of each span; the first line of the next span says how many were left out.

    most: how many lines a span lets through. seconds: the length of a span.
    """

    def __init__(self, log: logging.Logger, most: int = 10, seconds: float = 10.0) -> None:
        self._log = log
        self._most = most
        self._seconds = seconds
        self._lock = threading.Lock()
        self._until = 0.0
        self._said = 0

    def say(self, level: int, message: str, *args: object, extra: Mapping[str, Any] | None = None) -> None:
        """As `Logger.log`. The line may be left out."""
        with self._lock:
            now = time.monotonic()
            kept_back = 0
            if now >= self._until:
                kept_back = max(0, self._said - self._most)
                self._until, self._said = now + self._seconds, 0
            self._said += 1
            passes = self._said <= self._most
        if kept_back:
            self._log.log(level, "%d more such lines were left out", kept_back)
        if passes:
            self._log.log(level, message, *args, extra=extra)


#: Calls a function after this many seconds, as an event loop's `call_later` does.
CallLater = Callable[..., object]


class LogBudgets:
    """One line for each key in a span of time, and at its end one more if others were left out, with their number.

    For one thread. most: keys that have a span of their own at one time; those past it share one, so that no crowd of
    peers fills memory or log.
    """

    def __init__(self, log: logging.Logger, most: int = 50) -> None:
        self._log = log
        self._most = most
        self._left_out: dict[Hashable, tuple[int, str]] = {}

    def say(self, call_later: CallLater, key: Hashable, crowd: Hashable, seconds: float, line: str) -> None:
        """A warning. crowd: the key that it has if there are too many."""
        if key not in self._left_out and len(self._left_out) >= self._most:
            key = crowd
        if key in self._left_out:
            self._left_out[key] = self._left_out[key][0] + 1, line
        else:
            self._begin(call_later, key, seconds, line)

    def _begin(self, call_later: CallLater, key: Hashable, seconds: float, line: str) -> None:
        self._left_out[key] = 0, ""
        self._log.warning("%s", line)
        call_later(seconds, self._end, call_later, key, seconds)

    def _end(self, call_later: CallLater, key: Hashable, seconds: float) -> None:
        count, line = self._left_out.pop(key)
        if count:
            more = f" (and {count - 1} more like it in {seconds:g} s)" if count > 1 else ""
            self._begin(call_later, key, seconds, line + more)
