"""The pages for the operators of a receiver, on their own port: /healthz, /readyz, /metrics.

They show what one process says about itself (`SingleProcess`), or what several do (`receiver/processes.py`).
"""

import asyncio
import json
import os
from itertools import chain
from typing import Any, Protocol

from aiohttp import hdrs, web

from receiver.forward.forwarder import Forwarder
from receiver.journal.journal import Journal
from receiver.lately import Lately
from receiver.metrics import Counts, State, callbacks, of_receiver
from receiver.page.live import Live, Reading
from receiver.page.routes import Page
from receiver.relay.relay import Relay
from receiver.stopping import Stop
from shared.logs.streams import lines_dropped
from shared.observe.metrics import CONTENT_TYPE, of_snapshot, page, seconds_since
from shared.observe.poller import ALL_SECONDS, Poller
from shared.observe.readiness import Readiness
from shared.observe.snapshot import Snapshot
from shared.settings import Settings


class Pages(Protocol):
    """The content of the pages. All is well if `status` is `alive` or `ready`."""

    async def health(self) -> dict[str, Any]: ...

    async def readiness(self) -> Readiness: ...

    async def state(self) -> State: ...


class SingleProcess:
    """The pages of this process alone. forwarder: None if nothing is forwarded."""

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        relay: Relay,
        counts: Counts,
        lately: Lately,
        stop: Stop,
        forwarder: Forwarder | None = None,
    ) -> None:
        self._settings = settings
        self._journal = journal
        self._relay = relay
        self._counts = counts
        self._lately = lately
        self._stop = stop
        self._forwarder = forwarder

    async def health(self) -> dict[str, Any]:
        return {"status": "alive", "pid": os.getpid()}

    async def readiness(self) -> Readiness:
        journal = self._journal
        return Readiness(
            trouble=journal.check() or ("it was told to stop" if self._stop.told.is_set() else ""),
            journal=str(self._settings.journal_dir.absolute()),
            redis="up" if self._relay.redis_is_up else "down",
            journal_events=journal.waiting_events,
            journal_bytes=journal.waiting_bytes,
            journal_oldest_seconds=seconds_since(journal.oldest_ms() or 0),
            damaged_files=journal.damaged_files(),
            unreadable_files=journal.unreadable_files(),
            kept_events=journal.kept_events,
            kept_bytes=journal.kept_bytes,
            kept_reason=self._relay.kept_reason,
            callbacks=self._lately.callbacks(),
            refused=self._lately.refusals(),
        )

    async def state(self) -> State:
        relay, journal = self._relay, self._journal
        counts = {**self._counts.numbers(), "pushes ok": relay.pushes_ok, "pushes failed": relay.pushes_failed}
        if forwarder := self._forwarder:
            counts |= {"forwards ok": forwarder.forwarded, "forwards failed": forwarder.failed}
            counts["forwards dropped"] = forwarder.dropped
        counts["log_lines_dropped"] = lines_dropped()
        return State(
            pid=os.getpid(),
            counts=counts,
            room_bytes=journal.room_bytes,
            disk_bytes=_free_bytes(self._settings),
        )


def _free_bytes(settings: Settings) -> int:
    try:
        disk = os.statvfs(settings.journal_dir)
    except OSError:
        return 0
    return disk.f_bavail * disk.f_frsize


def make_admin(pages: Pages, settings: Settings) -> web.Application:
    """The pages, for people and for Prometheus."""
    poller = Poller(settings)

    async def healthz(request: web.Request) -> web.Response:
        return _json(await pages.health(), "alive")

    async def readyz(request: web.Request) -> web.Response:
        return _json((await pages.readiness()).as_json(), "ready")

    async def metrics(request: web.Request) -> web.Response:
        state, local, snapshot = await asyncio.gather(pages.state(), pages.readiness(), observe(poller))
        body = page(chain(of_receiver(state, local), of_snapshot(snapshot, queue_up=local.redis == "up")))
        return web.Response(body=body, headers={hdrs.CONTENT_TYPE: CONTENT_TYPE})

    async def reading() -> Reading:
        state, local, snapshot = await asyncio.gather(pages.state(), pages.readiness(), observe(poller))
        at = asyncio.get_running_loop().time()
        return Reading(at, snapshot, local, *(callbacks(state, outcome) for outcome in ("accepted", "refused")))

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    Page(settings, Live(settings, reading)).add_to(app)
    return app


def _json(answer: dict[str, Any], well: str) -> web.Response:
    text = json.dumps(answer) + "\n"  # for people with curl
    status = 200 if answer["status"] == well else 503
    return web.Response(status=status, text=text, content_type="application/json")


async def observe(poller: Poller) -> Snapshot:
    """As Poller.poll does, without blocking the loop."""
    begun = poller.begin()
    await asyncio.wait([asyncio.wrap_future(each) for each in begun], timeout=ALL_SECONDS)
    return poller.end(*begun)
