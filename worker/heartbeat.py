"""Whether the worker's loop still comes round."""

import time


class Heartbeat:
    """The sign of life of the worker's loop: set by that thread, read by others."""

    def __init__(self) -> None:
        self._at = time.monotonic()

    def beat(self) -> None:
        self._at = time.monotonic()

    @property
    def age_seconds(self) -> float:
        return time.monotonic() - self._at
