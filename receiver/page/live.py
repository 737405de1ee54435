"""One reading for all who watch the page, and the last 15 minutes as points for its charts."""

import asyncio
import json
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from shared.doctor.codes import CODES
from shared.observe.readiness import Readiness
from shared.observe.snapshot import Snapshot
from shared.observe.status import Status
from shared.settings import Settings

WATCHED_SECONDS = 1.0
UNWATCHED_SECONDS = 5.0
HISTORY_SECONDS = 15 * 60
#: Each stream holds a connection; no more people than this look at one receiver.
STREAMS_MOST = 50

log = logging.getLogger("receiver.page")


@dataclass(frozen=True, slots=True)
class Reading:
    """at: seconds of the loop's clock. accepted, refused: callbacks since this receiver started."""

    at: float
    snapshot: Snapshot
    local: Readiness
    accepted: int
    refused: int


class Live:
    """Reads once a second while somebody watches, and every five seconds otherwise.

    read: takes one reading of everything.
    """

    def __init__(self, settings: Settings, read: Callable[[], Awaitable[Reading]]) -> None:
        self._settings = settings
        self._read = read
        self._history: deque[dict[str, Any]] = deque(maxlen=int(HISTORY_SECONDS / UNWATCHED_SECONDS))
        self._last: Reading | None = None
        self._recorded: Reading | None = None
        self._event = ""
        self._ticks = asyncio.Condition()
        self._wanted = asyncio.Event()
        self._streams = 0
        self._closed = False

    @property
    def is_full(self) -> bool:
        return self._streams >= STREAMS_MOST

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                self._take(await self._read())
            except Exception:
                log.exception("the page's figures could not be read")
            async with self._ticks:
                self._ticks.notify_all()
            await self._pause(loop.time() - began)

    async def follow(self) -> AsyncIterator[str]:
        """Server-sent events (WHATWG HTML, 9.2): `history` once, then `status` at each reading, until `close`."""
        self._streams += 1
        self._wanted.set()
        try:
            yield f"retry: 1000\n\n{_encode('history', list(self._history))}{self._event}"
            while not self._closed:
                async with self._ticks:
                    await self._ticks.wait()
                if not self._closed:
                    yield self._event  # a slow reader misses some
        finally:
            self._streams -= 1

    async def now(self) -> dict[str, Any]:
        """A reading taken now, with rates since the last one."""
        return self._shown(await self._read())

    async def close(self) -> None:
        """Ends all streams: a receiver that stops must not wait for those who watch."""
        self._closed = True
        async with self._ticks:
            self._ticks.notify_all()

    def _take(self, reading: Reading) -> None:
        self._event = _encode("status", self._shown(reading))
        self._last = reading
        # Half a reading early is near enough, and points do not drift apart.
        if not self._recorded or reading.at - self._recorded.at > UNWATCHED_SECONDS - WATCHED_SECONDS / 2:
            self._history.append(self._point(reading))
            self._recorded = reading

    def _shown(self, reading: Reading) -> dict[str, Any]:
        """What the page shows of it, with rates since the last one."""
        status = self._status(reading, self._last)
        shown = status.as_json()
        shown["mends"] = [CODES[each.code].mend for each in status.coded_problems]
        shown["changes_newest"] = list(reading.snapshot.presence.last_changes)
        rate = _rate(self._last, reading) if self._last else None
        shown["callbacks"] = {"accepted": reading.accepted, "refused": reading.refused, "rate": rate}
        return shown

    def _status(self, reading: Reading, before: Reading | None) -> Status:
        return Status(self._settings, reading.snapshot, before.snapshot if before else None, reading.local)

    def _point(self, reading: Reading) -> dict[str, Any]:
        """What the charts show of the time since the last point; null if it is not known."""
        shown = self._status(reading, self._recorded).as_json()
        return {
            "at": shown["at"],
            "users": shown["users_online"],
            "callbacks": _rate(self._recorded, reading) if self._recorded else None,
            "events": shown["rates"]["events"],
            "changes": shown["rates"]["changes"],
            "lag": (shown["lag_seconds_now"] or {}).get("p99"),
        }

    async def _pause(self, took: float) -> None:
        """Until the next reading is due, or somebody begins to watch."""
        if self._streams:
            await asyncio.sleep(max(0.1, WATCHED_SECONDS - took))
            return
        self._wanted.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._wanted.wait(), max(0.1, UNWATCHED_SECONDS - took))


def _rate(before: Reading, now: Reading) -> float:
    """Callbacks accepted a second."""
    return max(0, now.accepted - before.accepted) / max(0.001, now.at - before.at)


def _encode(name: str, data: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n"
