"""Answers as HTTP."""

import time
from email.utils import formatdate

from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter

JSON = "application/json; charset=utf-8"
_RENDERED = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\nDate: %s\r\n\r\n"
#: Headers that a status requires.
_HEADERS = {
    401: {hdrs.WWW_AUTHENTICATE: 'Basic realm="openim-presence", charset="UTF-8"'},
    405: {hdrs.ALLOW: hdrs.METH_POST},
}


class CachedResponse(web.StreamResponse):
    """The answer to nearly every callback, made once a second and written as it is.

    For kept-alive HTTP/1.1 only. aiohttp would build its own Response for each request.
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
            raise ConnectionResetError("the peer no longer waits for the answer")
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._bytes = _RENDERED % (
                JSON.encode(),
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


def answer(status: int, body: bytes) -> web.Response:
    response = web.Response(status=status, body=body, headers={hdrs.CONTENT_TYPE: JSON, **_HEADERS.get(status, {})})
    if status in (401, 403):  # do not keep the connection of a peer that must not send
        response.force_close()
    return response
