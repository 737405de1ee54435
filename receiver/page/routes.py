"""The page's routes on the admin port: `/`, `/api/status`, `/api/stream`, `/api/users/<userID>`, `/api/failed`."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict
from importlib import resources
from typing import Any

from aiohttp import hdrs, web
from redis.exceptions import RedisError

from receiver.page.guard import Forbidden, Guard, PageRequest
from receiver.page.live import Live
from shared.failed import FailedBatches
from shared.redis.client import connect
from shared.settings import Settings
from shared.why import answer
from shared.why.collector import look_up

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

FAILED_SHOWN = 100
#: How long a person waits at most: for one answer of a server, and for a whole step.
ANSWER_SECONDS = 3.0
STEP_SECONDS = 6.0

#: The page may load its own files and nothing else, and no other page may frame it.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}


class Page:
    """The page and its data, for those whom PRESENCE_ADMIN_AUTH lets in."""

    def __init__(self, settings: Settings, live: Live) -> None:
        self._settings = settings
        self._live = live
        self._guard = Guard(settings.admin_auth)

    def add_to(self, app: web.Application) -> None:
        """Adds the routes. Readings begin with the application, and streams end with it."""
        for path, (name, content_type) in _FILES.items():
            app.router.add_get(path, self._guarded(_file(name, content_type)))
        app.router.add_get("/api/status", self._guarded(self._status))
        app.router.add_get("/api/stream", self._guarded(self._stream))
        # A browser turns /api/users/.. into /api/, so the page asks for /api/users?id=.. instead.
        app.router.add_get("/api/users", self._guarded(self._user))
        app.router.add_get("/api/users/{user:.+}", self._guarded(self._user))
        app.router.add_get("/api/failed", self._guarded(self._failed))
        for name, action in (("requeue", FailedBatches.requeue), ("drop", FailedBatches.drop)):
            app.router.add_post(f"/api/failed/{name}", self._guarded(self._acting(action), acts=True))
        app.cleanup_ctx.append(self._watching)
        app.on_shutdown.append(self._close_streams)

    def _guarded(self, handler: Handler, *, acts: bool = False) -> Handler:
        async def checked(request: web.Request) -> web.StreamResponse:
            if forbidden := self._guard.check(_page_request(request), acts=acts):
                return _refuse(forbidden)
            return await handler(request)

        return checked

    async def _watching(self, app: web.Application) -> AsyncIterator[None]:
        task = asyncio.create_task(self._live.run())
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    async def _close_streams(self, app: web.Application) -> None:
        await self._live.close()

    async def _status(self, request: web.Request) -> web.Response:
        return _json(await self._live.now())

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        if self._live.is_full:
            return _sentence(503, "Too many browsers watch this receiver already.")
        # Proxies that know this header pass each event on at once.
        response = web.StreamResponse(headers={**_HEADERS, "X-Accel-Buffering": "no"})
        response.content_type = "text/event-stream"
        await response.prepare(request)
        with suppress(ConnectionError):  # the browser has gone
            async for event in self._live.follow():
                await response.write(event.encode())
        return response

    async def _user(self, request: web.Request) -> web.Response:
        user_id = request.match_info.get("user") or request.query.get("id", "")
        if not user_id:
            return _sentence(400, "Name a user: /api/users/alice, or /api/users?id=alice.")

        def read() -> dict[str, Any]:
            settings = self._settings
            presence, queue = (connect(url, timeout=ANSWER_SECONDS) for url in (settings.redis_url, settings.queue_url))
            with presence, queue:
                return answer.as_json(look_up(presence, queue, settings, user_id))

        return await _step(read)

    async def _failed(self, request: web.Request) -> web.Response:
        def read(batches: FailedBatches) -> dict[str, Any]:
            found = batches.read()
            shown = [asdict(each) for each in found[:FAILED_SHOWN]]
            for each in shown:
                for event in each["events"]:
                    event["seq"] = str(event["seq"])  # JavaScript loses digits past 2^53
            return {"failed": shown, "count": len(found), "may_act": self._guard.may_act}

        return await self._on_failed(read)

    def _acting(self, action: Callable[[FailedBatches, str], bool]) -> Handler:
        async def act(request: web.Request) -> web.Response:
            try:
                ids = (await request.json())["ids"]
            except (ValueError, TypeError, KeyError):
                ids = None
            if not isinstance(ids, list) or not ids or not all(isinstance(each, str) for each in ids):
                return _sentence(400, 'Name the batches: {"ids": ["..."]}, as /api/failed shows them.')
            return await self._on_failed(lambda batches: {"done": [each for each in ids if action(batches, each)]})

        return act

    async def _on_failed(self, step: Callable[[FailedBatches], dict[str, Any]]) -> web.Response:
        def run() -> dict[str, Any]:
            with connect(self._settings.queue_url, timeout=ANSWER_SECONDS) as client:
                return step(FailedBatches(client, self._settings))

        return await _step(run)


def _page_request(request: web.Request) -> PageRequest:
    transport = request.transport
    address = transport.get_extra_info("sockname") if transport else None
    return PageRequest(
        local=str(address[0]) if isinstance(address, tuple) else "",
        host=request.headers.get(hdrs.HOST),
        origin=request.headers.get(hdrs.ORIGIN),
        # A link from elsewhere may lead to the page itself.
        fetch_site=request.headers.get("Sec-Fetch-Site") if request.path.startswith("/api/") else None,
        authorization=request.headers.get(hdrs.AUTHORIZATION),
    )


def _refuse(forbidden: Forbidden) -> web.Response:
    response = _sentence(forbidden.status, forbidden.text)
    if forbidden.status == 401:
        response.headers[hdrs.WWW_AUTHENTICATE] = 'Basic realm="presence"'
    return response


def _file(name: str, content_type: str) -> Handler:
    body = resources.files(__package__).joinpath("files", name).read_bytes()

    async def serve(request: web.Request) -> web.Response:
        return web.Response(body=body, content_type=content_type, charset="utf-8", headers=_HEADERS)

    return serve


async def _step(step: Callable[[], dict[str, Any]]) -> web.Response:
    """Runs a step that blocks, in a thread. If a server is away, the answer is a sentence."""
    try:
        return _json(await asyncio.wait_for(asyncio.to_thread(step), STEP_SECONDS))
    except TimeoutError:
        return _sentence(503, "Redis does not answer in time.")
    except RedisError as error:
        return _sentence(503, f"Redis does not answer: {error}")


def _json(said: dict[str, Any]) -> web.Response:
    return web.Response(text=json.dumps(said), content_type="application/json", headers=_HEADERS)


def _sentence(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=text + "\n", headers=_HEADERS)
