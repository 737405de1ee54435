"""One peer's connection: what it is at, how long it may be at that, and what of an answer it may leave unread."""

import asyncio
from collections.abc import Callable
from typing import Any

from aiohttp import StreamReader, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import _ErrInfo

from receiver.http import head
from receiver.http.eviction import OpenConnections

#: A request's head must be here within so long after its first byte. OpenIM's comes in one piece.
HEAD_SECONDS = 10
#: A connection that has brought nothing acceptable may lie idle for so long,
STRANGER_SECONDS = 60
#: any other for so long. The longest that is usual for a proxy's connections is an hour.
IDLE_SECONDS = 3630.0
#: An answer that waits for its peer to read it waits for so long, while the peer sends no more than so much.
UNREAD_SECONDS = 10
UNREAD_BYTES = 1 << 16
#: What is read ahead of a body that nobody takes yet, in bytes; and how long the rest of a refused one is read.
READ_AHEAD = {"read_bufsize": 1 << 16, "lingering_time": 2.0}
#: aiohttp's own.
OPTIONS: dict[str, Any] = {
    "access_log": None,
    "auto_decompress": False,
    "keepalive_timeout": IDLE_SECONDS,
    **head.LIMITS,
    **READ_AHEAD,
}

#: Looked up for each request.
_MOST_BYTES = head.MOST_BYTES
_received = web.RequestHandler.data_received  # super() costs half as much as the rest of our own


#: What a connection is at: waiting for a request, reading its head, working on it.
WAITS, READS, WORKS = range(3)


class Connection(web.RequestHandler):
    """One peer. Waits for a request, reads its head, works on it, and so on.

    unreadable: takes who sent what is no request, and what aiohttp's parser found; returns the answer.
    since: when it came to that, by `OpenConnections.now`. proven: it has brought something acceptable.
    wire: what to cut; while TLS is being agreed on it is not yet what requests come through. said_all: its peer sends
    no more, and may wait for answers. answered: how many requests have been.
    """

    __slots__ = (
        *("_body", "_body_bytes", "_cutter", "_headway", "_open", "_unread", "_unreadable"),
        *("answered", "phase", "proven", "said_all", "since", "wire"),
    )

    def __init__(
        self,
        server: web.Server,
        connections: OpenConnections,
        unreadable: Callable[[str, HttpProcessingError], web.Response],
        wire: asyncio.Transport | None = None,
        **options: Any,
    ) -> None:
        super().__init__(server, **options)
        self._open = connections
        self._unreadable = unreadable
        self._cutter: asyncio.TimerHandle | None = None
        self._unread = 0
        #: Of the newest request, as much of it as has come, and the bytes since then that were of no body.
        self._body: StreamReader = EMPTY_PAYLOAD
        self._body_bytes = 0
        self._headway = 0
        self.answered = 0
        self.phase = WAITS
        self.since = connections.now
        self.proven = False
        self.said_all = False
        self.wire = wire

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.wire = transport  # type: ignore[assignment]  # as aiohttp itself takes it
        # Then `pause_writing` is called for whatever a peer does not read, and not past 64 KiB of it alone.
        # Not 0: a TLS transport compares with >= and would pause for nothing, and for ever.
        self.wire.set_write_buffer_limits(1)  # type: ignore[union-attr]
        super().connection_made(transport)
        self._open.enter(self)

    def connection_lost(self, error: BaseException | None) -> None:
        self._open.leave(self)
        if self._cutter:
            self._cutter.cancel()
        super().connection_lost(error)

    def data_received(self, data: bytes) -> None:
        if not self.phase:
            self.phase = READS
            self.since = self._open.now
        if self._cutter:
            self._unread += len(data)
            if self._unread > UNREAD_BYTES:
                self.cut()
                return
        heads = self._request_count
        _received(self, data)
        if self._request_count == heads:
            self._measure(len(data))
            return
        self._body = body = self._messages[-1][1]
        self._body_bytes = body.total_bytes
        if self._headway or len(data) > _MOST_BYTES:
            self._headway = 0
            self._check_heads()

    def _check_heads(self) -> None:
        for index, (message, _) in enumerate(self._messages):
            if not isinstance(message, _ErrInfo) and head.size_of(message) > head.MOST_BYTES:
                self._messages[index] = _too_large()

    def _measure(self, size: int) -> None:
        """Bytes that ended no head: they were of a body, or of a head (or trailer) that may have grown too large."""
        if self._body.total_bytes != self._body_bytes:
            self._body_bytes = self._body.total_bytes
            self._headway = 0
            return
        self._headway += size
        if self._headway > head.MOST_BYTES:
            self._headway = 0
            self._break_off("its trailer is too large")
            self._request_count += 1
            self._messages.append(_too_large())
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)
            self._pause_transport_reading()  # this is the last that it is told

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """aiohttp's answer to what its parser cannot read, and to what our handler cannot be blamed for."""
        if isinstance(exc, HttpProcessingError):
            return self._unreadable(request.remote or "", exc)
        return super().handle_error(request, status, exc, message)

    def eof_received(self) -> bool:  # type: ignore[override]  # aiohttp leaves it to the default, which is to close
        """True where the connection is to stay: the peer has shut down its side, and a request waits for its answer.

        Over TLS there is no such half, neither in asyncio nor in uvloop.
        """
        if self.answered == self._request_count or self.ssl_context is not None:
            return False
        self._break_off("the connection ended within it")
        self.said_all = True
        return True

    def _break_off(self, why: str) -> None:
        """Lets whoever reads the newest request's body know that no more of it comes, if any is missing."""
        if not self._body.is_eof():
            self._body.set_exception(web.RequestPayloadError(why))

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = 0
        self._cutter = self._loop.call_later(UNREAD_SECONDS, self.cut)

    def resume_writing(self) -> None:
        if self._cutter:
            self._cutter.cancel()
            self._cutter = None
        super().resume_writing()

    @property
    def is_ending(self) -> bool:
        """Whether its next answer is its last; those that were sent along with it come first."""
        return self._open.are_ending and not self._messages

    def is_late(self, now: int) -> bool:
        waited = now - self.since
        return (self.phase == READS and waited > HEAD_SECONDS) or (not self.proven and waited > STRANGER_SECONDS)

    def worth(self) -> tuple[bool, bool, int]:
        """The lowest goes first."""
        return (self.proven, self.phase == WORKS, self.since)

    def end_if_idle(self) -> None:
        if self.transport is None:  # TLS is not yet agreed on
            self.cut()
        elif self.phase == WAITS and self.answered == self._request_count and not self._request_in_progress:
            self.force_close()

    def cut(self) -> None:
        """Ends it without another word; what it has not read is thrown away."""
        self._open.leave(self)
        if self.wire is not None:
            self.wire.abort()


def _too_large() -> tuple[_ErrInfo, StreamReader]:
    """In place of a request, for `handle_error`."""
    return _ErrInfo(status=431, exc=head.HeadTooLarge(), message=""), EMPTY_PAYLOAD
