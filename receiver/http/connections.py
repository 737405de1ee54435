"""The connections: how many, how long each may keep us waiting, and who goes first when there are too many.

OpenIM's own are kept alive, and lie idle for as long as nothing happens (since 3.7 its transport knows no idle limit).
Go does not send a POST again that met a connection just closed, so those are the last to go.
"""

import asyncio
import logging
import resource
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from shared.logs.throttle import LogThrottle

#: Of one process. OpenIM 3.0 to 3.6 has up to 100 for each of its processes, other releases fewer.
MOST_CONNECTIONS = 1000
#: Files that are not connections: the journal, Redis, the upstream.
OTHER_FILES = 250
#: A request's head must be here within so long after its first byte. OpenIM's comes in one piece.
HEAD_SECONDS = 10
#: A connection that has brought nothing acceptable may lie idle for so long,
STRANGER_SECONDS = 60
#: any other for so long. The longest that is usual for a proxy's connections is an hour.
IDLE_SECONDS = 3630.0
#: An answer that waits for its peer to read it waits for so long, while the peer sends no more than so much.
UNREAD_SECONDS = 10
UNREAD_BYTES = 1 << 16
HANDSHAKE_SECONDS = 5.0
#: A request line, one header, how many of them. OpenIM needs 200 bytes, 100 and seven; proxies add some.
HEAD_LIMITS = {"max_line_size": 4096, "max_field_size": 4096, "max_headers": 64}
#: What is read ahead of a body that nobody takes yet, in bytes; and how long the rest of a refused one is read.
READ_AHEAD = {"read_bufsize": 1 << 16, "lingering_time": 2.0}

_WAITS, _READS, _WORKS = range(3)
_received = web.RequestHandler.data_received  # super() costs half as much as the rest of our own

log = logging.getLogger("receiver")


class Connection(web.RequestHandler):
    """One peer. Waits for a request, reads its head, works on it, and so on.

    since: when it came to that, in seconds of the server's own count. proven: it has brought something acceptable.
    wire: what to cut; while TLS is being agreed on it is not yet what requests come through.
    """

    __slots__ = ("_cutter", "_server", "_unread", "phase", "proven", "since", "wire")

    def __init__(self, server: "Server", wire: asyncio.Transport | None = None, **options: Any) -> None:
        super().__init__(server, **options)
        self._server = server
        self._cutter: asyncio.TimerHandle | None = None
        self._unread = 0
        self.phase = _WAITS
        self.since = server.now
        self.proven = False
        self.wire = wire

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.wire = transport  # type: ignore[assignment]  # as aiohttp itself takes it
        # Then `pause_writing` is called for whatever a peer does not read, and not past 64 KiB of it alone.
        # Not 0: a TLS transport compares with >= and would pause for nothing, and for ever.
        self.wire.set_write_buffer_limits(1)  # type: ignore[union-attr]
        super().connection_made(transport)
        self._server.enter(self)

    def connection_lost(self, error: BaseException | None) -> None:
        self._server.leave(self)
        if self._cutter:
            self._cutter.cancel()
        super().connection_lost(error)

    def data_received(self, data: bytes) -> None:
        if not self.phase:
            self.phase = _READS
            self.since = self._server.now
        if self._cutter:
            self._unread += len(data)
            if self._unread > UNREAD_BYTES:
                self.cut()
                return
        _received(self, data)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = 0
        self._cutter = self._loop.call_later(UNREAD_SECONDS, self.cut)

    def resume_writing(self) -> None:
        if self._cutter:
            self._cutter.cancel()
            self._cutter = None
        super().resume_writing()

    def is_late(self, now: int) -> bool:
        waited = now - self.since
        return (self.phase == _READS and waited > HEAD_SECONDS) or (not self.proven and waited > STRANGER_SECONDS)

    def worth(self) -> tuple[bool, bool, int]:
        """The lowest goes first."""
        return (self.proven, self.phase == _WORKS, self.since)

    def cut(self) -> None:
        """Ends it without another word; what it has not read is thrown away."""
        self._server.leave(self)
        if self.wire is not None:
            self.wire.abort()


class Server(web.Server):
    """Makes a Connection of each peer, over TLS where a context is given, and watches over them."""

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        tls: ssl.SSLContext | None = None,
        most: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(self._serve, **options)
        self._handler = handler
        self._tls = tls
        self._most = most or _room()
        self._options: dict[str, Any] = {
            "loop": self._loop,
            "access_log": None,
            "auto_decompress": False,
            "keepalive_timeout": IDLE_SECONDS,
            **HEAD_LIMITS,
            **READ_AHEAD,
        }
        self._open: dict[Connection, None] = {}  # in the order in which they came
        self._crowds = LogThrottle(log, most=1)
        self.now = 0
        self._clock = self._loop.call_later(1.0, self._tick)

    def __call__(self) -> Any:
        """The protocol of a new connection, as asyncio's create_server() asks for it."""
        return _Handshake(self, self._tls) if self._tls else self.make_connection()

    def make_connection(self, wire: asyncio.Transport | None = None) -> Connection:
        return Connection(self, wire, **self._options)

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        connection: Connection = request.protocol  # type: ignore[assignment]  # made above
        if connection.phase == _WAITS:
            # It was sent along with the last one. From Python 3.12 on aiohttp would work off hundreds of those in one
            # go; everybody else comes in between.
            await asyncio.sleep(0)
        connection.phase = _WORKS
        connection.since = self.now
        try:
            response = await self._handler(request)
            if not connection.proven:
                connection.proven = response.status == 200
            return response
        finally:
            connection.phase = _WAITS
            connection.since = self.now

    def enter(self, connection: Connection) -> None:
        self._open[connection] = None
        if len(self._open) > self._most:
            self._make_room(connection)

    def leave(self, connection: Connection) -> None:
        self._open.pop(connection, None)

    def _make_room(self, newcomer: Connection) -> None:
        # Several at a time, so that a flood costs one such search for many connections.
        others = [each for each in self._open if each is not newcomer]
        leaving = sorted(others, key=Connection.worth)[: self._most // 20 + 1]
        for connection in leaving:
            connection.cut()
        self._crowds.say(logging.WARNING, "more than %d connections: cutting those of least use", self._most)

    def _tick(self) -> None:
        self.now += 1
        for connection in [each for each in self._open if each.is_late(self.now)]:
            connection.cut()
        self._clock = self._loop.call_later(1.0, self._tick)

    async def shutdown(self, timeout: float | None = None) -> None:
        self._clock.cancel()
        await super().shutdown(timeout)


class _Handshake(asyncio.Protocol):
    """A connection until TLS is agreed on: it counts, too, and can be cut.

    With create_server(ssl=...) nobody would know of it until then, and a flood of them would use up all files.
    """

    def __init__(self, server: Server, tls: ssl.SSLContext) -> None:
        self._server = server
        self._tls = tls
        self._early = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._task = asyncio.create_task(self._agree(transport))  # type: ignore[arg-type]  # it is a stream's

    def data_received(self, data: bytes) -> None:
        self._early += data  # uvloop begins to read after connection_made(), so before start_tls() can ask it not to

    async def _agree(self, wire: asyncio.Transport) -> None:
        loop = asyncio.get_running_loop()
        wire.pause_reading()
        connection = self._server.make_connection(wire)
        self._server.enter(connection)
        agreeing = asyncio.ensure_future(
            loop.start_tls(wire, connection, self._tls, server_side=True, ssl_handshake_timeout=HANDSHAKE_SECONDS)
        )
        # start_tls() connects its protocol in the loop's next turn but one, and this comes right after that.
        loop.call_soon(loop.call_soon, self._replay, wire)
        try:
            transport = await agreeing
        except (OSError, TimeoutError):  # ssl.SSLError is an OSError
            transport = None
        if transport is None or wire.is_closing():
            connection.cut()
        else:
            connection.connection_made(transport)

    def _replay(self, wire: asyncio.Transport) -> None:
        protocol: Any = wire.get_protocol()  # asyncio's and uvloop's alike are BufferedProtocols
        if self._early and protocol is not self:
            protocol.get_buffer(len(self._early))[: len(self._early)] = self._early
            protocol.buffer_updated(len(self._early))


def _room() -> int:
    """As many connections as this process may have files for, up to MOST_CONNECTIONS."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_CONNECTIONS + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(soft - OTHER_FILES, soft // 2)
    return MOST_CONNECTIONS
