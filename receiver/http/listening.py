"""Listens, and on the way out still accepts every peer that has come by then."""

import asyncio
import os
import selectors
import socket
import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

from aiohttp import web

from shared.addresses import is_of_the_host
from shared.errors import SettingsError

#: How many connections may wait to be accepted: with aiohttp's 128, many strangers would make OpenIM retry after 1 s.
BACKLOG = 1024
#: After this time in a sibling's queue a peer is accepted here.
HELP_SECONDS = 0.02

#: The time in which connections that began before newcomers were sent elsewhere become established (a round trip).
LAST_SECONDS = 0.1
#: asm-generic/socket.h; linux/filter.h has the form of a program.
_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27

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
    """Listens for one of aiohttp's own servers. Raises SettingsError."""
    await runner.setup()
    with _naming(host, port, variable):
        for bound in bind(host, port, variable):
            await web.SockSite(runner, bound, backlog=BACKLOG).start()


@contextmanager
def _naming(host: str, port: int, variable: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        at_fault = variable.replace("PORT", "HOST") if is_of_the_host(error) else variable
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
        raise SettingsError(f"PRESENCE_{at_fault}: cannot listen on {host}:{port}: {reason}") from None


class Listener:
    """Accepts peers.

    own: the sockets of this process; each process has its own, so that the kernel distributes the peers evenly.
    siblings: those of the other processes, from which it accepts peers that are left waiting.
    """

    def __init__(self, server: web.Server, own: Sequence[Socket], siblings: Sequence[Socket] = ()) -> None:
        self._server = server
        self._own = own
        self._siblings = siblings
        self._accepting: list[asyncio.AbstractServer] = []
        self._helping: asyncio.Task[None] | None = None
        self._entering: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int, variable: str) -> None:
        """host, port, variable: for the SettingsError that it raises if it cannot listen."""
        loop = asyncio.get_running_loop()
        with _naming(host, port, variable):
            for each in self._own:
                # A copy: the event loop closes the socket that it is given, and peers in the queue would be rejected.
                accepting = await loop.create_server(self._server, sock=each.dup(), backlog=BACKLOG)
                self._accepting.append(accepting)
        if self._siblings:
            self._helping = asyncio.create_task(self._help())

    async def stop(self) -> None:
        """Stops listening; accepts all peers that are in a queue, and rejects none."""
        if self._accepting:
            for each in self._own:
                send_newcomers_elsewhere(each)
            await asyncio.sleep(LAST_SECONDS)
        if self._helping:
            self._helping.cancel()
        for accepting in self._accepting:
            accepting.close()
        sockets = [*self._own, *self._siblings] if self._accepting else []
        came = [peer for each in sockets for peer in _queue(each)]
        for each in (*self._own, *self._siblings):
            each.close()
        self._let_in(came)
        await asyncio.gather(*self._entering)

    async def _help(self) -> None:
        """Accepts peers of a sibling that is frozen, or not there at the moment."""
        with selectors.DefaultSelector() as queues:
            for each in self._siblings:
                queues.register(each, selectors.EVENT_READ, each)
            while True:
                await _readable(queues.fileno())
                came = {key.data for key, _ in queues.select(0)}
                await asyncio.sleep(HELP_SECONDS)
                for listening in came & {key.data for key, _ in queues.select(0)}:
                    self._let_in(_queue(listening))

    def _let_in(self, peers: Iterable[Socket]) -> None:
        # Each in its own task, so that no peer is dropped halfway if this task is cancelled.
        for peer in peers:
            entering = asyncio.create_task(self._enter(peer))
            self._entering.add(entering)
            entering.add_done_callback(self._entering.discard)

    async def _enter(self, peer: Socket) -> None:
        with suppress(OSError):  # the peer has left
            await asyncio.get_running_loop().connect_accepted_socket(self._server, peer)


def send_newcomers_elsewhere(listening: Socket) -> None:
    """Makes the kernel drop the first packet (SYN) of each new connection from now on. Linux only.

    The peer sends it again a second later, to the process that listens on the port by then. Between the last accept(2)
    and the close(2) there is always a moment, and a connection that came in it would be reset with its request.
    """
    # Load the flags. Is SYN among them? Then 0 bytes of the packet are let through, else all.
    program = struct.pack("HBBI" * 4, *(0x30, 0, 0, 13), *(0x45, 0, 1, 0x02), *(0x06, 0, 0, 0), *(0x06, 0, 0, 0xFFFF))
    filters = array("B", program)
    with suppress(OSError):
        listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", 4, filters.buffer_info()[0]))


def take_newcomers(listening: Socket) -> None:
    """Undoes `send_newcomers_elsewhere`."""
    with suppress(OSError):  # there is no filter
        listening.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


async def _readable(number: int) -> None:
    """Waits until a descriptor is readable."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(number, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(number)


def _queue(listening: Socket) -> Iterator[Socket]:
    """All peers that wait to be accepted there."""
    with suppress(OSError):  # none waits, or nothing listens there yet
        while True:
            peer, _ = listening.accept()
            peer.setblocking(False)
            yield peer
