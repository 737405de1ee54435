"""Being told to stop, and in which order: for one process, for the parent of several, and for these."""

import asyncio
import signal
from collections.abc import Collection
from contextlib import suppress

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """told: by SIGTERM or Ctrl-C. hurried: a second time, so that nothing is waited for that may be left.

    hurrying: the signals that count as a second time.
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
        """Waits for so long, or until it is hurried."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.hurried.wait(), seconds)
