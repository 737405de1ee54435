"""One peer's connection: its phase, how long that may last, and how much of its answers it may leave unread."""

import asyncio
from collections.abc import Callable
from typing import Any

from aiohttp import StreamReader, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import _ErrInfo

from receiver.http import head
from receiver.http.eviction import OpenConnections

#: How long a request's head may take after its first byte. OpenIM's comes in one piece.
HEAD_SECONDS = 10
#: How long a connection may be idle if nothing acceptable ever came on it,
STRANGER_SECONDS = 60
#: and how long any other. Proxies usually keep connections for an hour at most.
IDLE_SECONDS = 3630.0
#: How long an answer waits for its peer to read it, and how much the peer may send meanwhile.
UNREAD_SECONDS = 10
UNREAD_BYTES = 1 << 16
#: How many bytes of a body are read ahead of our handler; and for how long the rest of a refused body is read.
READ_AHEAD = {"read_bufsize": 1 << 16, "lingering_time": 2.0}
#: Options of aiohttp's own handler.
OPTIONS: dict[str, Any] = {
    "access_log": None,
    "auto_decompress": False,
    "keepalive_timeout": IDLE_SECONDS,
    **head.LIMITS,
    **READ_AHEAD,
}

#: Looked up for each request.
_MOST_BYTES = head.MOST_BYTES
_received = web.RequestHandler.data_received  # super() would add half of what our own code costs


#: The phases of a connection: waiting for a request, reading its head, working on it.
WAITS, READS, WORKS = range(3)


class Connection(web.RequestHandler):
    """One peer. Waits for a request, reads its head, works on it, and so on.

    unreadable: takes the sender of what is not a request, and what aiohttp's parser found; returns the answer.
    since: when the phase began, by `OpenConnections.now`. proven: something acceptable has come on it. wire: the
    transport to cut; until TLS is agreed on, requests do not come through it. said_all: its peer sends no more, but may
    wait for answers. answered: how many requests have been answered.
    """

    __slots__ = (
        *("_body", "_body_bytes", "_cutter", "_headway", "_open", "_unread", "_unreadable"),
        *("answered", "phase", "proven", "said_all", "since", "wire"),
    )

    def __init__(
        self,
        server: web.Server,
        connections: "OpenConnections[Connection]",
        unreadable: Callable[[str, HttpProcessingError], web.Response],
        wire: asyncio.Transport | None = None,
        **options: Any,
    ) -> None:
        super().__init__(server, **options)
        self._open = connections
        self._unreadable = unreadable
        self._cutter: asyncio.TimerHandle | None = None
        self._unread = 0
        #: The newest request's body, how much of it has come, and the bytes since then that were not of a body.
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
        # So that `pause_writing` is called for every byte that a peer does not read, not only beyond 64 KiB.
        # Not 0: a TLS transport compares with >= and would pause without need, and for ever.
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
        """Counts bytes that ended no head: they were of a body, or of a head or trailer that may be too large."""
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
            self._pause_transport_reading()  # the peer gets no further answer

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answers what aiohttp's parser cannot read; leaves all other errors to aiohttp."""
        if isinstance(exc, HttpProcessingError):
            return self._unreadable(request.remote or "", exc)
        return super().handle_error(request, status, exc, message)

    def resume_reading(self, resume_parser: bool = True) -> None:
        # aiohttp calls this for every body that was read, and parses what came during a pause. Without a pause there is
        # nothing to parse.
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def eof_received(self) -> bool:  # type: ignore[override]  # aiohttp leaves it to the default, which is to close
        """True if the connection must stay: the peer has shut down its side, but a request waits for its answer.

        TLS has no such half-closed state, neither in asyncio nor in uvloop.
        """
        if self.answered == self._request_count or self.ssl_context is not None:
            return False
        self._break_off("the connection ended within it")
        self.said_all = True
        return True

    def _break_off(self, why: str) -> None:
        """Makes reads of the newest request's body fail, if some of it is missing: no more will come."""
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
        """The lowest is closed first."""
        return (self.proven, self.phase == WORKS, self.since)

    def end_if_idle(self) -> None:
        """Ends it if nothing has come that waits for an answer."""
        if self.transport is None:  # TLS is not yet agreed on
            self.cut()
        elif self.phase == WAITS and self.answered == self._request_count and not self._request_in_progress:
            self.force_close()

    def cut(self) -> None:
        """Ends it at once; what the peer has not read is discarded."""
        self._open.leave(self)
        if self.wire is not None:
            self.wire.abort()


def _too_large() -> tuple[_ErrInfo, StreamReader]:
    """Takes the place of a request, for `handle_error`."""
    return _ErrInfo(status=431, exc=head.HeadTooLarge(), message=""), EMPTY_PAYLOAD
