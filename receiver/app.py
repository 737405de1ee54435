"""The HTTP side: a request in, an answer out, and an event in the journal between the two."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from email.utils import formatdate
from time import perf_counter

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.web_exceptions import HTTPRequestEntityTooLarge

from receiver.callback import (
    Foreign,
    Refused,
    Target,
    accepted,
    check_path,
    not_ours,
    read_body,
    read_target,
    refused,
)
from receiver.journal import Journal
from receiver.metrics import OTHER, Counts
from shared.errors import Unavailable
from shared.events import encode
from shared.settings import Settings

log = logging.getLogger("receiver")

OPERATION_ID = "operationID"
NOTE_SECONDS = 10.0
_JSON = "application/json; charset=utf-8"
_RENDERED = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\nDate: %s\r\n\r\n"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_TOO_LARGE = Refused(413, "the body is too large", "body: at most PRESENCE_MAX_BODY_BYTES")


class Receiver:
    """Answers callbacks. Only `handle` touches the network; nothing here waits for Redis.

    appended: called after each event that the journal took. durable: awaited before each answer, where set.
    """

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        counts: Counts,
        appended: Callable[[], None],
        durable: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._prefix = settings.callback_path
        self._max_body_bytes = settings.max_body_bytes
        self._journal = journal
        self._counts = counts
        self._appended = appended
        self._durable = durable
        self._refusals = _Refusals()
        self._accepted = _Prepared(accepted(Target(None, "body")))
        self._document = _Prepared(accepted(Target(None, "document")))

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        started = perf_counter()
        try:
            target, command = await self._accept(request)
        except Refused as refusal:
            self._refusals.note(request, refusal)
            self._counts.other("refused", refusal.status, *_named(request))
            return _answer(refusal.status, refused(refusal), _headers_of(refusal))
        except Foreign as foreign:
            self._counts.other("foreign", 404)
            return _answer(404, not_ours(foreign))
        except Unavailable as reason:
            self._counts.other("refused", 503, *_named(request))
            return _answer(503, refused(Refused(503, "the event cannot be stored now", str(reason))))
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception:
            log.exception("a request could not be answered as it should")
            self._counts.other("refused", 503, *_named(request))
            return _answer(503, refused(Refused(503, "this receiver has a defect", "see its log")))
        self._counts.accepted(command, target.shape, started)
        if request.keep_alive and request.version >= HttpVersion11:
            return self._document if target.shape == "document" else self._accepted
        return _answer(200, accepted(target))

    async def _accept(self, request: web.BaseRequest) -> tuple[Target, str]:
        """Runs the checks of docs/openim-versions.md in their order and stores the event.

        Returns what to answer to, and the command.
        """
        if request.method != hdrs.METH_POST:
            raise Refused(405, "callbacks are sent with POST")
        check_path(request.raw_path, self._prefix)
        content = request.content
        # Nearly all bodies come in one piece with their headers.
        body = content.read_nowait() if content.is_eof() else await self._read(request)
        if len(body) > self._max_body_bytes:
            raise _TOO_LARGE
        headers = request.headers
        _check_content_type(headers)
        target = read_target(request.raw_path)
        event = read_body(target, headers.get(OPERATION_ID), body, time.time_ns() // 1_000_000)
        self._journal.append(encode(event))
        self._appended()
        if self._durable:
            await self._durable()
        return target, event.command

    async def _read(self, request: web.BaseRequest) -> bytes:
        if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue":
            await request.writer.write(_CONTINUE)
            request.writer.output_size = 0  # or aiohttp would take the answer for begun
        try:
            return await request.read()
        except HTTPRequestEntityTooLarge:
            raise _TOO_LARGE from None
        except web.RequestPayloadError:
            raise Refused(400, "the body is broken off or garbled", "body: not what its headers say") from None


class _Prepared(web.StreamResponse):
    """The answer to nearly every callback, made once a second and written as it is.

    For kept-alive HTTP/1.1 only. aiohttp's own Response is put together anew for each request.
    """

    def __init__(self, body: bytes) -> None:
        super().__init__()
        self._body_bytes = body
        self._second = 0
        self._bytes = b""

    @property
    def keep_alive(self) -> bool:
        return True

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("nobody waits for the answer any more")
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._bytes = _RENDERED % (
                _JSON.encode(),
                len(self._body_bytes),
                formatdate(second, usegmt=True).encode(),
            )
            self._bytes += self._body_bytes
        transport.write(self._bytes)
        if transport.get_write_buffer_size():  # a peer that sends and does not read
            await request.writer.drain()
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        pass


class _Refusals:
    """Says in the log that callbacks are refused, since OpenIM does not: at most once in NOTE_SECONDS."""

    def __init__(self) -> None:
        self._count = 0
        self._next = 0.0

    def note(self, request: web.BaseRequest, refusal: Refused) -> None:
        self._count += 1
        if time.monotonic() >= self._next:
            what = f"{refusal.status} {refusal.message}. {refusal.detail}".rstrip(". ")
            log.warning(
                "refused %d since the last such line; now %s %s: %s",
                self._count,
                request.method,
                request.raw_path[:200],
                what,
            )
            self._count = 0
            self._next = time.monotonic() + NOTE_SECONDS


def _named(request: web.BaseRequest) -> tuple[str, str]:
    """Command and shape of a request that was refused, as far as its URL says them."""
    try:
        target = read_target(request.raw_path)
    except (Refused, Foreign):
        return OTHER, OTHER
    return target.command or OTHER, target.shape


def _check_content_type(headers: Mapping[str, str]) -> None:
    value = headers.get(hdrs.CONTENT_TYPE, "")
    if value != _JSON:
        media_type, _, parameters = value.lower().partition(";")
        charset = parameters.replace(" ", "").replace('"', "").partition("charset=")[2].partition(";")[0]
        if media_type.strip() != "application/json" or charset not in ("", "utf-8", "utf8"):
            raise Refused(415, "only JSON is taken", "Content-Type: must be application/json in UTF-8")
    if headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
        raise Refused(415, "only plain bodies are taken", "Content-Encoding: must be absent")


def _headers_of(refusal: Refused) -> dict[str, str]:
    return {hdrs.ALLOW: hdrs.METH_POST} if refusal.status == 405 else {}


def _answer(status: int, body: bytes, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(status=status, body=body, headers={hdrs.CONTENT_TYPE: _JSON, **(headers or {})})


def make_server(receiver: Receiver, settings: Settings) -> web.Server:
    """The low-level server: an Application's routing costs a fifth of a request, and there is one route."""
    loop = asyncio.get_running_loop()

    def make_request(message, payload, protocol, writer, task):  # type: ignore[no-untyped-def]
        return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=settings.max_body_bytes)

    return web.Server(receiver.handle, request_factory=make_request, access_log=None, auto_decompress=False)
