"""Runs what may hang: in threads that may be left behind, and probes side by side, each with a time limit."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Generic, TypeVar

T = TypeVar("T")


def in_thread(name: str, function: Callable[[], T]) -> Future[T]:
    """Begins at once, in a thread that ends with the program: if a file system or a server hangs, it never ends.

    The future cannot be cancelled: one who gives up must not cancel it for others.
    """
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(function())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


class Probe(Generic[T]):
    """Begins at once. seconds: how long `result` waits, from the beginning on."""

    def __init__(self, name: str, function: Callable[[], T], seconds: float) -> None:
        self.name = name
        self.trouble = ""
        self._seconds = seconds
        self._until = time.monotonic() + seconds
        self._future = in_thread(f"probe {name}", function)

    def result(self) -> T | None:
        """None if it did not end in time, or failed; `trouble` then says so."""
        wait([self._future], max(0.0, self._until - time.monotonic()))
        if not self._future.done():
            self.trouble = f"no result within {self._seconds:g} s"
            return None
        if error := self._future.exception():  # a defect of one probe must not hide what the others saw
            self.trouble = f"{type(error).__name__}: {error}"
            return None
        return self._future.result()
