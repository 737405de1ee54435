"""Whether the worker's loop is still running."""

import time


class Heartbeat:
    """When the worker's loop last ran: set by its thread, read by others."""

    def __init__(self) -> None:
        self._at = time.monotonic()

    def beat(self) -> None:
        self._at = time.monotonic()

    @property
    def age_seconds(self) -> float:
        return time.monotonic() - self._at
