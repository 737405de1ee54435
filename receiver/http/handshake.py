"""A connection until TLS is agreed on: it counts and can be cut like any other.

With create_server(ssl=...) we would not know of it until then, and a flood of such connections would use up all files.
"""

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

from aiohttp.http_exceptions import HttpProcessingError

from receiver.http.connections import Connection
from receiver.http.head import of_handshake

HANDSHAKE_SECONDS = 5.0


class Handshake(asyncio.Protocol):
    """Agrees on TLS, then lets the connection that `make` returns take over.

    make: takes the bare transport. failed: takes a peer with which it failed, and why.
    """

    def __init__(
        self,
        tls: ssl.SSLContext,
        make: Callable[[asyncio.Transport], Connection],
        failed: Callable[[str, HttpProcessingError], object],
    ) -> None:
        self._tls = tls
        self._make = make
        self._failed = failed
        self._early = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._task = asyncio.create_task(self._agree(transport))  # type: ignore[arg-type]  # it is a stream's

    def data_received(self, data: bytes) -> None:
        self._early += data  # uvloop begins to read after connection_made(), so before start_tls() can ask it not to

    async def _agree(self, wire: asyncio.Transport) -> None:
        loop = asyncio.get_running_loop()
        wire.pause_reading()
        connection = self._make(wire)
        agreeing = asyncio.ensure_future(
            loop.start_tls(wire, connection, self._tls, server_side=True, ssl_handshake_timeout=HANDSHAKE_SECONDS)
        )
        # start_tls() connects its protocol two turns of the loop later, and this comes right after that.
        loop.call_soon(loop.call_soon, self._replay, wire)
        try:
            transport = await agreeing
        except (OSError, TimeoutError) as error:
            transport = None
            if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
                peer = wire.get_extra_info("peername") or ("",)
                self._failed(peer[0], of_handshake(error))
        if transport is None or wire.is_closing():
            connection.cut()
        else:
            connection.connection_made(transport)

    def _replay(self, wire: asyncio.Transport) -> None:
        protocol: Any = wire.get_protocol()  # asyncio's and uvloop's alike are BufferedProtocols
        if self._early and protocol is not self:
            protocol.get_buffer(len(self._early))[: len(self._early)] = self._early
            protocol.buffer_updated(len(self._early))
