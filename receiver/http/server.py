"""Makes a Connection for each peer, over TLS if there is a certificate, and has the requests handled in turn."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from receiver.http.connections import OPTIONS, WAITS, WORKS, Connection
from receiver.http.eviction import OpenConnections
from receiver.http.handshake import Handshake

#: After it is told to stop, the server keeps its connections for this long. Each answer says that it is the last on its
#: connection, so that the peer opens another. Go does not repeat a POST that met a connection just closed.
LINGER_SECONDS = 2.0
#: The time after that to answer requests that it has begun to read. OpenIM waits no longer.
ANSWER_SECONDS = 5.0


class Request(web.BaseRequest):
    @property
    def keep_alive(self) -> bool:
        """Whether the connection stays open, decided when the answer is made."""
        connection: Connection = self.protocol  # type: ignore[assignment]  # made below
        return not (self._message.should_close or connection.is_ending)


class Server(web.Server):
    """handler: answers requests. unreadable: answers what is not a request, see `Connection`.

    most: the most connections at a time; 0 for the most that the limit of open files allows.
    """

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        unreadable: Callable[[str, HttpProcessingError], web.Response],
        tls: ssl.SSLContext | None = None,
        most: int = 0,
    ) -> None:
        super().__init__(self._serve)
        self.request_factory = partial(Request, loop=self._loop)
        self._handler = handler
        self._open: OpenConnections[Connection] = OpenConnections(most)
        self._make = partial(Connection, self, self._open, unreadable, loop=self._loop, **OPTIONS)
        self._unreadable = unreadable
        self._tls = tls

    def __call__(self) -> Any:
        """The protocol of a new connection, as asyncio's create_server() asks for it."""
        return Handshake(self._tls, self._make_handshaking, self._unreadable) if self._tls else self._make()

    def _make_handshaking(self, wire: asyncio.Transport) -> Connection:
        connection = self._make(wire=wire)
        self._open.enter(connection)
        return connection

    def serve_with(self, tls: ssl.SSLContext) -> None:
        """Serves new connections with this certificate; the others keep theirs."""
        self._tls = tls

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        connection: Connection = request.protocol  # type: ignore[assignment]  # made above
        if connection.phase == WAITS:
            # It was sent together with the last one. From Python 3.12 on aiohttp would answer hundreds of these in one
            # go; this lets other connections come in between.
            await asyncio.sleep(0)
        connection.phase = WORKS
        connection.since = self._open.now
        try:
            response = await self._handler(request)
            if not connection.proven:
                connection.proven = response.status == 200
            return response
        finally:
            connection.phase = WAITS
            connection.since = self._open.now
            connection.answered += 1
            if connection.said_all and connection.answered == connection._request_count:
                connection.close()

    async def stop(self, hurried: asyncio.Event) -> None:
        """Ends all connections, in order. hurried: cuts the first wait short."""
        self._open.are_ending = True
        await self._wait_until_none(LINGER_SECONDS, hurried)
        for connection in list(self._open):
            connection.end_if_idle()
        await self._wait_until_none(ANSWER_SECONDS)
        self._open.stop()
        await self.shutdown(0.1)

    async def _wait_until_none(self, seconds: float, hurried: asyncio.Event | None = None) -> None:
        until = self._loop.time() + seconds
        while list(self._open) and self._loop.time() < until and not (hurried and hurried.is_set()):
            await asyncio.sleep(0.01)
