"""Looks up the names of hosts for aiohttp. Nothing waits for a resolver that hangs."""

import asyncio
import socket
from functools import partial

from aiohttp.abc import AbstractResolver, ResolveResult

from shared.timed import in_thread

_NUMERIC = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV


class Resolver(AbstractResolver):
    """As aiohttp's own, but with threads that a program does not wait for when it ends.

    A resolver whose servers are silent takes 40 s; asyncio's own threads would hold up the end by that.
    """

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Raises OSError if there is no such name."""
        return await asyncio.wrap_future(in_thread(f"look up {host}", partial(_look_up, host, port, family)))

    async def close(self) -> None:
        """Nothing is kept."""


def _look_up(host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
    numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    return [
        ResolveResult(
            hostname=host,
            host=socket.getnameinfo(address, _NUMERIC)[0],  # with the scope of a link-local address
            port=port,
            family=its_family,
            proto=protocol,
            flags=numeric,
        )
        for its_family, _, protocol, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, family=family, flags=socket.AI_ADDRCONFIG
        )
    ]
