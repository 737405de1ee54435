"""Listening, and how it ends: whoever has come by then is let in."""

import asyncio
import os
import selectors
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from aiohttp import web

from shared.errors import SettingsError

#: Connections that wait to be taken: with aiohttp's 128, a crowd of strangers would make OpenIM try again after 1 s.
BACKLOG = 1024
#: Who has waited so long in a sibling's queue is let in.
HELP_SECONDS = 0.02

Socket = socket.socket


def bind(host: str, port: int, variable: str, *, reuse_port: bool = False) -> list[Socket]:
    """A socket, not yet listening, for each address of the host. Raises SettingsError, which names the variable."""
    sockets: list[Socket] = []
    with _naming(host, port, variable):
        for family, kind, protocol, _, address in dict.fromkeys(
            socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        ):
            bound = socket.socket(family, kind, protocol)
            sockets.append(bound)
            bound.setblocking(False)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
            bound.bind(address)
    return sockets


async def listen(runner: web.BaseRunner, host: str, port: int, variable: str) -> None:
    """For aiohttp's own servers. Raises SettingsError."""
    await runner.setup()
    with _naming(host, port, variable):
        for bound in bind(host, port, variable):
            await web.SockSite(runner, bound, backlog=BACKLOG).start()


@contextmanager
def _naming(host: str, port: int, variable: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise SettingsError(f"PRESENCE_{variable}: cannot listen on {host}:{port}: {reason}") from None


class Listener:
    """Lets peers in.

    own: each process has sockets of its own, so that the kernel shares the peers out evenly. siblings: the sockets of
    the others, who are helped when they leave somebody waiting.
    """

    def __init__(self, server: web.Server, own: Sequence[Socket], siblings: Sequence[Socket] = ()) -> None:
        self._server = server
        self._own = own
        self._siblings = siblings
        self._accepting: list[asyncio.AbstractServer] = []
        self._helping: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int, variable: str) -> None:
        """host, port, variable: for the SettingsError that it raises where it cannot listen."""
        loop = asyncio.get_running_loop()
        with _naming(host, port, variable):
            for each in self._own:
                # A copy: the event loop closes what it is given, and what waits in the queue would be turned away.
                accepting = await loop.create_server(self._server, sock=each.dup(), backlog=BACKLOG)
                self._accepting.append(accepting)
        if self._siblings:
            self._helping = asyncio.create_task(self._help())

    async def stop(self) -> None:
        """Listens no longer; takes everybody who is in a queue."""
        if self._helping:
            self._helping.cancel()
        for accepting in self._accepting:
            accepting.close()
        sockets = [*self._own, *self._siblings] if self._accepting else []
        came = [peer for each in sockets for peer in _queue(each)]
        for each in (*self._own, *self._siblings):
            each.close()
        await self._let_in(came)

    async def _help(self) -> None:
        """A sibling that is frozen, or not there at the moment, keeps nobody waiting."""
        with selectors.DefaultSelector() as queues:
            for each in self._siblings:
                queues.register(each, selectors.EVENT_READ, each)
            while True:
                await _readable(queues.fileno())
                came = {key.data for key, _ in queues.select(0)}
                await asyncio.sleep(HELP_SECONDS)
                for listening in came & {key.data for key, _ in queues.select(0)}:
                    await self._let_in(list(_queue(listening)))

    async def _let_in(self, peers: list[Socket]) -> None:
        loop = asyncio.get_running_loop()
        for peer in peers:
            with suppress(OSError):  # it has gone again
                await loop.connect_accepted_socket(self._server, peer)


async def _readable(number: int) -> None:
    """Waits until a descriptor is."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(number, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(number)


def _queue(listening: Socket) -> Iterator[Socket]:
    """Everybody who waits to be accepted there."""
    with suppress(OSError):  # nobody, or nobody listens there yet
        while True:
            peer, _ = listening.accept()
            peer.setblocking(False)
            yield peer
