"""A request on its way to the upstream and the answer on its way back: each piece as it comes, nothing added."""

from collections.abc import AsyncIterator

import aiohttp
from aiohttp import HttpVersion11, hdrs, web
from multidict import CIMultiDict

from receiver.callback import Refused
from receiver.http.body import Limit, broken_off

#: RFC 9110, 7.6.1; Trailer because aiohttp passes none on.
_OF_THE_CONNECTION = {
    *(b"connection", b"proxy-connection", b"keep-alive"),
    *(b"te", b"trailer", b"transfer-encoding", b"upgrade"),
}

Headers = CIMultiDict[str]


def headers_of(message: web.BaseRequest | aiohttp.ClientResponse, *but: bytes) -> Headers:
    """The headers as they came, without those of the connection. but: others to leave out, in lower case.

    Raises UnicodeError where one is not UTF-8, which aiohttp cannot write.
    """
    connection = ",".join(message.headers.getall(hdrs.CONNECTION, ()))
    named = {name.strip().lower().encode() for name in connection.split(",")}
    left_out = named.union(_OF_THE_CONNECTION, but)
    raw = message.raw_headers
    return CIMultiDict((name.decode(), value.decode()) for name, value in raw if name.lower() not in left_out)


class ProxiedResponse(web.StreamResponse):
    """A body on its way there and an answer on its way back, each piece as it comes.

    Writes the answer by itself: aiohttp's own would add headers. refusal: what was wrong with the body.
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
        await writer.write_headers(f"HTTP/1.1 {upstream.status} {upstream.reason or ''}", headers)
        while piece:
            await writer.write(piece)
            piece = await upstream.content.readany()
        await writer.write_eof()

    @property
    def has_no_reader(self) -> bool:
        """True where OpenIM has gone away meanwhile."""
        return self._request.transport is None

    @property
    def keep_alive(self) -> bool:
        return self._kept

    async def prepare(self, request: web.BaseRequest) -> None:
        pass

    async def write_eof(self, data: bytes = b"") -> None:
        pass
