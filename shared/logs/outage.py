"""Logs the outage of a server: one line when it begins, one when it ends."""

import logging
import random
import time


class Outage:
    """Follows one server. Not for use by several threads at once.

    what: the server's name in the log lines. first_seconds, longest_seconds: the pause after the first failure, and the
    longest pause.
    """

    def __init__(
        self, log: logging.Logger, what: str, first_seconds: float = 0.1, longest_seconds: float = 3.0
    ) -> None:
        self._log = log
        self._what = what
        self._first_seconds = first_seconds
        self._longest_seconds = longest_seconds
        self._failures = 0
        self._since = 0.0

    @property
    def is_on(self) -> bool:
        return self._failures > 0

    def failed(self, error: Exception) -> float:
        """Returns how many seconds to wait before the next try: twice the last pause, with some jitter."""
        if not self._failures:
            self._since = time.monotonic()
            self._log.warning("%s is not available: %s", self._what, error)
        self._failures += 1
        pause = min(self._first_seconds * 2.0 ** min(self._failures - 1, 16), self._longest_seconds)
        return pause * random.uniform(0.5, 1.0)

    def over(self) -> None:
        """To be called after every success."""
        if self._failures:
            self._log.warning("%s is back after %.1f s", self._what, time.monotonic() - self._since)
            self._failures = 0
