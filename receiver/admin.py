"""The pages for whoever looks after a receiver, on a port of their own."""

import json
import os
from collections.abc import Callable

from aiohttp import web

from receiver.journal import Journal


def make_admin(journal: Journal, redis_is_up: Callable[[], bool]) -> web.Application:
    """`/healthz`: the process answers. `/readyz`: the journal can take events, whatever Redis does."""

    async def healthz(request: web.Request) -> web.Response:
        return web.json_response({"status": "alive", "pid": os.getpid()})

    async def readyz(request: web.Request) -> web.Response:
        trouble = journal.check()
        state = {
            "status": "not ready" if trouble else "ready",
            "trouble": trouble,
            "redis": "up" if redis_is_up() else "down",
            "journal_events": journal.waiting_events,
            "journal_bytes": journal.waiting_bytes,
            "damaged_files": journal.damaged_files(),
            "unreadable_files": journal.unreadable_files(),
        }
        return web.Response(
            status=503 if trouble else 200, text=json.dumps(state) + "\n", content_type="application/json"
        )

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    return app
