"""Receives the signal to stop: in a single process, in the parent of several, and in each of these."""

import asyncio
import signal
from collections.abc import Collection
from contextlib import suppress

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """told: SIGTERM or Ctrl-C came. hurried: it came a second time, so that every optional wait ends.

    hurrying: the signals that count as the second one.
    """

    def __init__(self, hurrying: Collection[signal.Signals] = SIGNALS) -> None:
        self.told = asyncio.Event()
        self.hurried = asyncio.Event()
        self._hurrying = hurrying
        for number in SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._hear, number)

    def _hear(self, number: signal.Signals) -> None:
        if self.told.is_set() and number in self._hurrying:
            self.hurried.set()
        self.told.set()

    async def pause(self, seconds: float) -> None:
        """Waits for that long, or until it is hurried."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.hurried.wait(), seconds)
