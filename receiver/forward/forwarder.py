"""Forwards OpenIM's other callbacks to the server that would have got them without us.

OpenIM has one URL for all its callbacks. If it pointed to a business server, that server's URL is given to us.
"""

import asyncio
import hashlib
import logging
import re
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

import aiohttp
from aiohttp import hdrs, web
from yarl import URL

from receiver.callback import Refused, path_of
from receiver.forward.proxy import Headers, ProxiedResponse, headers_of, with_any_bytes
from receiver.http import answers, head
from receiver.http.body import Limit, MemoryBudget, ask_for
from receiver.http.responses import answer
from shared.errors import Unavailable
from shared.logs.throttle import LogThrottle
from shared.resolver import Resolver
from shared.settings import Settings

#: OpenIM waits 5 s as shipped.
TOTAL_SECONDS = 4.5
CONNECT_SECONDS = 2.0
#: At one time. OpenIM 3 has up to 100 connections for each of its processes.
MOST_AT_ONCE = 100
#: How many more wait for their turn: enough for a burst, and too few for their bodies to fill the memory.
MOST_WAITING = 200
#: Less than the 5 s after which the most impatient servers (Node.js, uvicorn) close an idle connection: a POST that
#: meets a connection being closed must not be sent again.
IDLE_SECONDS = 4.0
#: How many copies of callbacks about presence wait to be sent, and how many are sent at one time.
MOST_COPIES = 1000
COPIERS = 4
PIECE_BYTES = 1 << 16

log = logging.getLogger("receiver.forward")


@dataclass(frozen=True, slots=True)
class _Copy:
    url: URL
    headers: Headers
    body: bytes


class Forwarder:
    """Forwards requests, each within TOTAL_SECONDS, and counts them.

    forwarded: sent on and answered, including copies. failed: not answered. dropped: copies not sent.
    """

    def __init__(self, settings: Settings) -> None:
        self.limit = Limit(settings.forward_max_bytes, "PRESENCE_FORWARD_MAX_BYTES")
        self.forwarded = self.failed = self.dropped = 0
        self._prefix = settings.callback_path
        self._goes_on = settings.forward_on_failure == "continue"
        parts = urlsplit(settings.forward_url)
        self._origin = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        self._path = parts.path.rstrip("/")
        self._authorization = _basic(parts.username, parts.password or "") if parts.username else None
        # Receivers that forward elsewhere have another name, so that they can be chained.
        name = hashlib.sha256(f"{self._origin}{self._path}".encode()).hexdigest()[:8]
        self._via = f"1.1 openim-presence-{name}"
        self._troubles = LogThrottle(log)
        self._turns = _Turns(self.limit.size)
        self._room_for_copies = MemoryBudget(self.limit.size)
        self._copies: asyncio.Queue[_Copy] | None = asyncio.Queue(MOST_COPIES) if settings.forward_ours else None
        self._copiers: list[asyncio.Task[None]] = []
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS, resolver=Resolver()),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            max_line_size=head.MOST_BYTES,  # as of requests
            max_field_size=head.MOST_BYTES,
            skip_auto_headers=(hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.CONTENT_TYPE, hdrs.USER_AGENT),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
        )
        if self._copies is not None:
            self._copiers = [asyncio.create_task(self._send_copies(self._copies)) for _ in range(COPIERS)]

    @property
    def takes_copies(self) -> bool:
        return self._copies is not None

    async def answer(self, request: web.BaseRequest, body: bytes | None) -> web.StreamResponse:
        """Passes the request on, and the upstream's answer back. body: None if it has not been read yet.

        Raises Refused (413 or 400) if the body turns out to be wrong on the way.
        """
        if body is None and (request.content_length or 0) > self.limit.size:
            raise self.limit.passed()
        url, headers = self._url(request), self._headers(request)
        passing = ProxiedResponse(request, self.limit)
        try:
            if any(self._via in line for line in request.headers.getall(hdrs.VIA, ())):
                raise Unavailable("PRESENCE_FORWARD_URL leads back to this receiver")
            async with asyncio.timeout(TOTAL_SECONDS), self._turns.take(len(body or b"")):
                if body is None:
                    await ask_for(request)
                data = passing.pieces() if body is None else body
                async with self._post(url, headers, data) as upstream:
                    await passing.pass_back(upstream)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, Unavailable) as error:
            return self._unanswered(error, passing)
        self.forwarded += 1
        return passing

    def _unanswered(self, error: Exception, passing: ProxiedResponse) -> web.StreamResponse:
        if passing.is_begun or passing.has_no_reader:
            self.failed += not passing.has_no_reader
            raise ConnectionResetError("the answer broke off")  # the only way left to report it
        if passing.refusal:
            raise passing.refusal
        return self.give_up(_in_words(error))

    def give_up(self, trouble: str) -> web.Response:
        """The answer if the upstream gives none: one that lets OpenIM go on, or one that it cannot decode."""
        self.failed += 1
        self._troubles.say(logging.WARNING, "a callback was not forwarded to %s: %s", self._origin, trouble)
        if self._goes_on:
            return answer(200, answers.go_on(trouble))
        return web.Response(status=502, text=f"{trouble[0].upper()}{trouble[1:]}.\n")

    def copy(self, request: web.BaseRequest, body: bytes) -> None:
        """Sends a copy of an accepted callback some time later; drops it if too many wait."""
        if self._copies is None or self._copies.full():
            self.dropped += 1
            return
        try:
            copy = _Copy(self._url(request), self._headers(request), body)
            self._room_for_copies.take(len(body))
        except (Unavailable, Refused):
            self.dropped += 1
        else:
            self._copies.put_nowait(copy)

    async def _send_copies(self, copies: "asyncio.Queue[_Copy]") -> None:
        while True:
            copy = await copies.get()
            try:
                async with asyncio.timeout(TOTAL_SECONDS), self._post(copy.url, copy.headers, copy.body) as upstream:
                    async for _ in upstream.content.iter_chunked(PIECE_BYTES):
                        pass
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                self.failed += 1
                trouble = _in_words(error)
                self._troubles.say(logging.WARNING, "a copy was not sent to %s: %s", self._origin, trouble)
            except asyncio.CancelledError:
                self.dropped += 1
                raise
            else:
                self.forwarded += 1
            finally:
                self._room_for_copies.give_back(len(copy.body))
                copies.task_done()

    def _post(self, url: URL, headers: Headers, data: Any) -> Any:
        headers, data = with_any_bytes(headers, data)
        return self._session.post(url, data=data, headers=headers, allow_redirects=False)

    def _url(self, request: web.BaseRequest) -> URL:
        """Raises Refused (400) if the path would lead out of the upstream's."""
        path = path_of(request.raw_path)[len(self._prefix) :]
        if not {".", ".."}.isdisjoint(re.split(r"[/\\;]", unquote(path))):
            raise Refused(400, "the request cannot be passed on", "path: must be without . and .. as segments")
        _, mark, query = request.raw_path.partition("?")
        return URL(f"{self._origin}{self._path}{path}{mark}{query}", encoded=True)

    def _headers(self, request: web.BaseRequest) -> Headers:
        # Expect concerns only OpenIM and us: we have read the body or ask for it. Host is that of the URL.
        headers = headers_of(request, b"host", b"expect")
        headers.add(hdrs.VIA, self._via)
        if self._authorization:
            headers[hdrs.AUTHORIZATION] = self._authorization
        return headers

    async def close(self, grace_seconds: float) -> None:
        """Sends the waiting copies, but stops after that time."""
        if self._copies is not None:
            try:
                await asyncio.wait_for(self._copies.join(), grace_seconds)
            except TimeoutError:
                self.dropped += self._copies.qsize()
                log.warning("%d copies were not sent on", self._copies.qsize())
        for copier in self._copiers:
            copier.cancel()
        await self._session.close()


class _Turns:
    """Limits how many requests are sent at a time, in the order of asking, and how many wait, with how much memory."""

    def __init__(self, largest: int) -> None:
        self._turns = asyncio.Semaphore(MOST_AT_ONCE)
        self._waiting = 0
        self._room = MemoryBudget(largest)

    @asynccontextmanager
    async def take(self, size: int) -> AsyncIterator[None]:
        """size: of a body that is held meanwhile. Raises Unavailable if too many wait."""
        if self._waiting >= MOST_WAITING:
            raise Unavailable("too many callbacks wait for the server behind PRESENCE_FORWARD_URL")
        self._room.take(size)
        try:
            self._waiting += 1
            try:
                await self._turns.acquire()
            finally:
                self._waiting -= 1
            try:
                yield
            finally:
                self._turns.release()
        finally:
            self._room.give_back(size)


def _in_words(error: Exception) -> str:
    """The error in our words: aiohttp's have the URL, whose path may hold a secret."""
    if isinstance(error, TimeoutError):
        return f"the server behind PRESENCE_FORWARD_URL did not answer within {TOTAL_SECONDS:g} s"
    if isinstance(error, Unavailable):
        return str(error)
    return "the server behind PRESENCE_FORWARD_URL cannot be reached, or does not speak HTTP"


def _basic(user: str, password: str) -> str:
    return "Basic " + b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode()
