"""When the disk has an event: within a second of the answer, or before it (PRESENCE_JOURNAL_FSYNC).

Either way no fsync runs on the event loop. A SIGKILL loses nothing in either; this is about power.
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
    """Lets all answers that wait at one moment share one fsync."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._running: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None

    async def wait(self) -> None:
        """Returns when all that was appended before is on disk. Raises Unavailable."""
        event = self._journal.appended
        # A sync that is under way may have begun before our event was written; the one after has not.
        if self._next is None:
            self._next = asyncio.create_task(self._after(self._running))
        try:
            await asyncio.shield(self._next)
        except OSError as error:
            raise Unavailable(f"the journal cannot be synced: {error.strerror}") from error
        if event <= self._journal.unsafe_to:  # somebody else's sync failed on the file that our event is in
            raise Unavailable("the journal could not be synced")

    async def _after(self, running: "asyncio.Task[None] | None") -> None:
        if running:
            await asyncio.wait([running])
        self._running, self._next = self._next, None
        await asyncio.to_thread(self._journal.sync)
