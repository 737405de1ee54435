"""Listening, and being told to stop: for one process and for the parent of several alike."""

import asyncio
import os
import signal
import socket

from aiohttp import web

from shared.errors import SettingsError

#: Connections that wait to be taken: with aiohttp's 128, a crowd of strangers would make OpenIM try again after 1 s.
BACKLOG = 1024


def stop_signal() -> asyncio.Event:
    """Is set by SIGTERM and Ctrl-C."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def listen(runner: web.BaseRunner, host: str, port: int, variable: str, *, reuse_port: bool = False) -> None:
    """Raises SettingsError, which names the variable, where that is not possible."""
    await runner.setup()
    try:
        site: web.BaseSite
        if host == "::":  # asyncio would make it IPv6 alone
            listener = socket.create_server(
                (host, port), family=socket.AF_INET6, backlog=BACKLOG, reuse_port=reuse_port, dualstack_ipv6=True
            )
            site = web.SockSite(runner, listener, backlog=BACKLOG)
        else:
            site = web.TCPSite(runner, host, port, backlog=BACKLOG, reuse_port=reuse_port or None)
        await site.start()
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)  # asyncio's own says all of it twice
        raise SettingsError(f"PRESENCE_{variable}: cannot listen on {host}:{port}: {reason}") from None
