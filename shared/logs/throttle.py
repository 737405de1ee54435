"""Log lines about what may happen thousands of times."""

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any


class LogThrottle:
    """Lets through the first lines of each span, and says with the next span's first how many it kept back.

    most: lines in a span of so many seconds.
    """

    def __init__(self, log: logging.Logger, most: int = 10, seconds: float = 10.0) -> None:
        self._log = log
        self._most = most
        self._seconds = seconds
        self._lock = threading.Lock()
        self._until = 0.0
        self._said = 0

    def say(self, level: int, message: str, *args: object, extra: Mapping[str, Any] | None = None) -> None:
        """As logging's own; the message must not depend on being the only one of its kind."""
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
