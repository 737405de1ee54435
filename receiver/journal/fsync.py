"""Brings events to the disk within a second of the answer, or before it (PRESENCE_JOURNAL_FSYNC).

Either way no fsync runs on the event loop. A SIGKILL loses nothing either way; this is about power cuts.
"""

import asyncio
import logging
import threading

from receiver.journal.journal import Journal
from shared.errors import Unavailable
from shared.logs.outage import Outage

log = logging.getLogger("receiver.journal")


class PeriodicSync(threading.Thread):
    """Syncs each second until `stop`."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(name="sync", daemon=True)
        self._journal = journal
        self._stopping = threading.Event()

    def run(self) -> None:
        disk = Outage(log, "fsync of the journal")
        while not self._stopping.wait(1.0):
            try:
                self._journal.sync()
                disk.over()
            except OSError as error:
                disk.failed(error)

    def stop(self) -> None:
        self._stopping.set()
        self.join()


class SyncBeforeAck:
    """Lets all answers that wait at the same time share one fsync."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._running: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None

    async def wait(self) -> None:
        """Returns when all that was appended before is on disk. Raises Unavailable."""
        event = self._journal.appended
        # The current sync may have begun before our event was written, so wait for the next one.
        if self._next is None:
            self._next = asyncio.create_task(self._after(self._running))
        try:
            await asyncio.shield(self._next)
        except OSError as error:
            raise Unavailable(f"the journal cannot be synced: {error.strerror}") from error
        if event <= self._journal.unsafe_to:  # another sync failed on the file that has our event
            raise Unavailable("the journal could not be synced")

    async def _after(self, running: "asyncio.Task[None] | None") -> None:
        if running:
            await asyncio.wait([running])
        self._running, self._next = self._next, None
        await asyncio.to_thread(self._journal.sync)
