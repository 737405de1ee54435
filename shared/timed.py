"""Runs probes side by side, each with a time limit."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Generic, TypeVar

T = TypeVar("T")


class Probe(Generic[T]):
    """Begins at once, in a thread that may be left behind: if a file system or a server hangs, it never ends.

    seconds: how long `result` waits, from the beginning on.
    """

    def __init__(self, name: str, function: Callable[[], T], seconds: float) -> None:
        self.name = name
        self.trouble = ""
        self._function = function
        self._future: Future[T] = Future()
        self._seconds = seconds
        self._until = time.monotonic() + seconds
        threading.Thread(target=self._run, name=f"probe {name}", daemon=True).start()

    def _run(self) -> None:
        try:
            self._future.set_result(self._function())
        except Exception as error:  # a defect of the probe must not hide what the others saw
            self._future.set_exception(error)

    def result(self) -> T | None:
        """None if it did not end in time, or failed; `trouble` then says so."""
        wait([self._future], max(0.0, self._until - time.monotonic()))
        if not self._future.done():
            self.trouble = f"no result within {self._seconds:g} s"
            return None
        if error := self._future.exception():
            self.trouble = f"{type(error).__name__}: {error}"
            return None
        return self._future.result()
