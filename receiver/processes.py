"""Several receiver processes on one port (PRESENCE_PROCESSES).

The kernel shares the connections out between them (SO_REUSEPORT), and each has a journal folder of its own. Their
parent starts them, starts them again, and answers for the health of all on the admin port: it asks each on a
Unix socket.
"""

import asyncio
import logging
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from receiver.admin import make_admin
from receiver.http.listening import listen
from receiver.metrics import MonotonicCounts, State, merge
from receiver.stopping import Stop
from shared.children import die_with_parent, ending
from shared.errors import PresenceError
from shared.logs.streams import lines_dropped
from shared.observe.poller import Poller
from shared.observe.readiness import Readiness, combine, readiness_of
from shared.settings import Settings

#: Tells a process that it is one of several, and where to answer for its health.
SOCKET_VARIABLE = "RECEIVER_ADMIN_SOCKET"
RESTART_SECONDS = 1.0
#: A process that ends by itself so soon could not start, and has said why.
START_SECONDS = 3.0

log = logging.getLogger("receiver")


async def supervise(settings: Settings) -> None:
    """Runs PRESENCE_PROCESSES receivers until a signal. Raises PresenceError where one cannot start."""
    stop = Stop().told
    with tempfile.TemporaryDirectory(prefix="receiver-") as directory:
        sockets = [Path(directory) / f"{number}.sock" for number in range(settings.processes)]
        admin = web.AppRunner(make_admin(ProcessGroup(sockets), Poller(settings)), access_log=None)
        children = [asyncio.create_task(_keep_running(path, stop)) for path in sockets]
        try:
            if settings.admin_port:
                await listen(admin, settings.admin_host, settings.admin_port, "ADMIN_PORT")
            await asyncio.wait(children, return_when=asyncio.FIRST_COMPLETED)  # one ends only for a reason
        finally:
            stop.set()
            endings = await asyncio.gather(*children, return_exceptions=True)
            await admin.cleanup()
        for ended in endings:
            if isinstance(ended, BaseException):
                raise ended


async def _keep_running(socket: Path, stop: asyncio.Event) -> None:
    environment = {**os.environ, SOCKET_VARIABLE: str(socket)}
    loop = asyncio.get_running_loop()
    stopping = asyncio.create_task(stop.wait())
    first = True
    while not stop.is_set():
        started = loop.time()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "receiver", env=environment, preexec_fn=die_with_parent, start_new_session=True
        )
        ended = asyncio.create_task(process.wait())
        await asyncio.wait([ended, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            process.terminate()
            await ended
            return
        if first and ended.result() > 0 and loop.time() - started < START_SECONDS:
            raise PresenceError("one of the processes could not start; see the line above")
        first = False
        socket.unlink(missing_ok=True)
        log.error("a receiver process ended (%s); another starts", ending(ended.result()))
        await asyncio.wait([stopping], timeout=RESTART_SECONDS)


class ProcessGroup:
    """What all processes say, as one. Counts of processes that have ended stay in the sum."""

    def __init__(self, sockets: list[Path]) -> None:
        self._sockets = sockets
        self._ledgers = [MonotonicCounts() for _ in sockets]

    async def health(self) -> dict[str, Any]:
        alive = None not in await self._ask_all("/healthz")
        return {"status": "alive" if alive else "one of the processes does not answer", "pid": os.getpid()}

    async def readiness(self) -> Readiness:
        answers = await self._ask_all("/readyz")
        return combine([readiness_of(answer) if answer else None for answer in answers])

    async def state(self) -> State:
        states = await self._ask_all("/state")
        merged = merge([State(**state) if state else None for state in states], self._ledgers)
        dropped = merged.counts.get("log_lines_dropped", 0) + lines_dropped()
        return replace(merged, counts={**merged.counts, "log_lines_dropped": dropped})

    async def _ask_all(self, page: str) -> list[dict[str, Any] | None]:
        return await asyncio.gather(*(_ask(path, page) for path in self._sockets))


async def _ask(socket: Path, page: str) -> dict[str, Any] | None:
    try:
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(str(socket)), timeout=aiohttp.ClientTimeout(total=1)
            ) as session,
            session.get(f"http://receiver{page}") as answer,
        ):
            said: dict[str, Any] = await answer.json()
            return said
    except (aiohttp.ClientError, OSError, TimeoutError):
        return None
