"""The connections of the admin port: few, so that whoever reaches it takes no files from callbacks and the journal."""

import asyncio
from typing import Any

from aiohttp import web

from receiver.http.eviction import OpenConnections

#: At a time: fifty people, Prometheus, and whoever asks for the health.
MOST_VISITORS = 100
#: How long a connection may take to send its first request. aiohttp itself closes those that are idle after one.
FIRST_SECONDS = 10


class AdminRunner(web.AppRunner):
    """Serves the admin pages. If there are more than MOST_VISITORS connections, the least useful are closed."""

    async def _make_server(self) -> web.Server:
        return _Server(await super()._make_server())

    async def _cleanup_server(self) -> None:
        if isinstance(self.server, _Server):
            self.server.open.stop()
        await super()._cleanup_server()


class _Server(web.Server):
    def __init__(self, made: web.Server) -> None:
        """made: by the runner, for its application."""
        super().__init__(made.request_handler, request_factory=made.request_factory, **made._kwargs)
        self.open: OpenConnections[Visitor] = OpenConnections(MOST_VISITORS)

    def __call__(self) -> web.RequestHandler:
        return Visitor(self, self.open, loop=self._loop, **self._kwargs)


class Visitor(web.RequestHandler):
    __slots__ = ("_open", "_since")

    def __init__(self, server: web.Server, connections: "OpenConnections[Visitor]", **options: Any) -> None:
        super().__init__(server, **options)
        self._open = connections
        self._since = connections.now

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._open.enter(self)

    def connection_lost(self, error: BaseException | None) -> None:
        self._open.leave(self)
        super().connection_lost(error)

    def is_late(self, now: int) -> bool:
        return not self._request_count and now - self._since > FIRST_SECONDS

    def worth(self) -> tuple[bool, bool, int]:
        """The lowest is closed first."""
        return (self._request_count > 0, self._current_request is not None, self._since)

    def cut(self) -> None:
        self._open.leave(self)
        if self.transport is not None:
            self.transport.abort()
