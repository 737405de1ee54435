"""Passes a request to the upstream and its answer back: each piece as it comes, with nothing added."""

import re
import secrets
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from aiohttp import HttpVersion11, hdrs, web
from multidict import CIMultiDict

from receiver.callback import Refused
from receiver.http.body import Limit, broken_off

#: RFC 9110, 7.6.1; and Trailer, because aiohttp passes no trailers on.
_OF_THE_CONNECTION = {
    *(b"connection", b"proxy-connection", b"keep-alive"),
    *(b"te", b"trailer", b"transfer-encoding", b"upgrade"),
}

#: As aiohttp reads them: a byte that is not UTF-8 becomes a lone surrogate.
Headers = CIMultiDict[str]
_NO_TEXT = re.compile("[\udc80-\udcff]")


def headers_of(message: web.BaseRequest | aiohttp.ClientResponse, *but: bytes) -> Headers:
    """The headers as they came, without those of the connection. but: others to leave out, in lower case."""
    connection = ",".join(message.headers.getall(hdrs.CONNECTION, ()))
    named = {name.strip().lower().encode(errors="surrogateescape") for name in connection.split(",")}
    left_out = named.union(_OF_THE_CONNECTION, but)
    raw = message.raw_headers
    return CIMultiDict((_text(name), _text(value)) for name, value in raw if name.lower() not in left_out)


def _text(raw: bytes) -> str:
    return raw.decode(errors="surrogateescape")


def with_any_bytes(headers: Headers, body: Any) -> tuple[Headers, Any]:
    """What to give aiohttp's client so that these headers go out as they came, whatever their bytes.

    aiohttp leaves out what is not UTF-8. So it gets a mark in each such place, and the bytes replace the mark when the
    body is about to be written: until then, aiohttp keeps the head that it has made.
    """
    if not any(map(_NO_TEXT.search, headers.values())):
        return headers, body
    marks: dict[bytes, bytes] = {}
    marked = Headers()
    for name, value in headers.items():
        if _NO_TEXT.search(value):
            mark = secrets.token_hex(16)
            marks[mark.encode()] = value.encode(errors="surrogateescape")
            value = mark  # noqa: PLW2901
        marked.add(name, value)
    payload = aiohttp.payload.PAYLOAD_REGISTRY.get(body)
    write = payload.write_with_length

    async def write_marked(writer: Any, length: int | None) -> None:
        for mark, value in marks.items():
            writer._headers_buf = writer._headers_buf.replace(mark, value)
        await write(writer, length)

    payload.write_with_length = write_marked  # type: ignore[assignment,method-assign]
    return marked, payload


class ProxiedResponse(web.StreamResponse):
    """Reads the body piece by piece, and writes the upstream's answer itself: aiohttp's response would add headers.

    refusal: what was wrong with the body.
    """

    def __init__(self, request: web.BaseRequest, limit: Limit) -> None:
        super().__init__()
        self._request = request
        self._limit = limit
        self._kept = False
        self.is_begun = False
        self.refusal: Refused | None = None

    async def pieces(self) -> AsyncIterator[bytes]:
        size = 0
        try:
            while piece := await self._request.content.readany():
                size += len(piece)
                if size > self._limit.size:
                    self.refusal = self._limit.passed()
                    raise self.refusal
                yield piece
        except web.RequestPayloadError:
            self.refusal = broken_off()
            raise self.refusal from None

    async def pass_back(self, upstream: aiohttp.ClientResponse) -> None:
        headers = headers_of(upstream)
        piece = await upstream.content.readany()  # until then, a failure can still be answered
        self.is_begun = True
        transport = self._request.transport
        if transport is None:
            raise ConnectionResetError("the peer no longer waits for the answer")
        writer, is_new = self._request.writer, self._request.version >= HttpVersion11
        has_length = hdrs.CONTENT_LENGTH in headers or upstream.status in (204, 304)
        self._kept = self._request.keep_alive and (has_length or is_new)
        if not has_length and is_new:
            headers[hdrs.TRANSFER_ENCODING] = "chunked"
            writer.enable_chunking()
        if not self._kept:
            headers[hdrs.CONNECTION] = "close"
        elif not is_new:
            headers[hdrs.CONNECTION] = "keep-alive"
        self.set_status(upstream.status)
        status_line = f"HTTP/1.1 {upstream.status} {upstream.reason or ''}"
        if any(map(_NO_TEXT.search, headers.values())):  # the writer would leave those bytes out
            lines = [status_line, *map(": ".join, headers.items()), "\r\n"]
            transport.write("\r\n".join(lines).encode(errors="surrogateescape"))
        else:
            await writer.write_headers(status_line, headers)
        while piece:
            await writer.write(piece)
            piece = await upstream.content.readany()
        await writer.write_eof()

    @property
    def has_no_reader(self) -> bool:
        """True if OpenIM has gone away meanwhile."""
        return self._request.transport is None

    @property
    def keep_alive(self) -> bool:
        return self._kept

    async def prepare(self, request: web.BaseRequest) -> None:
        pass

    async def write_eof(self, data: bytes = b"") -> None:
        pass
