"""Several receiver processes on one port (PRESENCE_PROCESSES).

The kernel distributes the connections between their sockets (SO_REUSEPORT). Each process has all of these sockets, and
accepts peers that a sibling leaves waiting. Each has its own journal folder. Their parent starts and restarts them,
kills one that is frozen, and answers for the health of all on the admin port.
"""

import asyncio
import json
import logging
import os
import signal
import socket
import sys
from dataclasses import replace
from typing import Any

from receiver.admin import make_admin
from receiver.child import Inherited
from receiver.http.listening import bind, listen, take_newcomers
from receiver.http.visitors import AdminRunner
from receiver.metrics import MonotonicCounts, State, merge
from receiver.service_manager import say_ready
from receiver.stopping import Stop
from shared.children import die_with_parent, ending
from shared.errors import PresenceError
from shared.logs.streams import lines_dropped
from shared.observe.readiness import Readiness, combine, readiness_of
from shared.settings import Settings

RESTART_SECONDS = 1.0
#: A process that ends by itself within this time could not start, and has said why.
START_SECONDS = 3.0
#: How often a process is asked, and how long it has to answer.
ASK_SECONDS = 1.0
#: After this many missed answers in a row a process is named in the log, and then counts as frozen. Answers are
#: counted, not time, because the whole machine may have stood still.
NAMED_AT, FROZEN_AT = 2, 4
#: The same before its first answer, while it starts.
FROZEN_AT_START = 30
#: The longest answer, in bytes.
MOST_SAID = 1 << 20

log = logging.getLogger("receiver")


async def supervise(settings: Settings) -> None:
    """Runs PRESENCE_PROCESSES receivers until a signal. Raises PresenceError if one cannot start."""
    stop = Stop()
    sockets = [bind(settings.host, settings.port, "PORT", reuse_port=True) for _ in range(settings.processes)]
    closing = asyncio.create_task(_close(sockets, stop))
    places = [Place(own, [each for others in sockets if others is not own for each in others]) for own in sockets]
    admin = AdminRunner(make_admin(ProcessGroup(places), settings), access_log=None)
    children = [asyncio.create_task(place.keep_running(stop)) for place in places]
    try:
        if settings.admin_port:
            await listen(admin, settings.admin_host, settings.admin_port, "ADMIN_PORT")
        announcing = asyncio.create_task(_announce(places))
        await asyncio.wait(children, return_when=asyncio.FIRST_COMPLETED)  # one ends only for a reason
        announcing.cancel()
    finally:
        stop.told.set()
        endings = await asyncio.gather(*children, closing, return_exceptions=True)
        await admin.cleanup()
    for ended in endings:
        if isinstance(ended, BaseException):
            raise ended


async def _announce(places: "list[Place]") -> None:
    for place in places:
        await place.answered.wait()
    say_ready()


async def _close(sockets: list[list[socket.socket]], stop: Stop) -> None:
    """Closes the parent's copies at the stop: when the last process closes its own, nothing must listen any more."""
    await stop.told.wait()
    for own in sockets:
        for each in own:
            each.close()


class Place:
    """A place for one process and, when it has ended, for the next. own, siblings: as `Listener` takes them.

    answered: set once the process has answered, and so listens.
    """

    def __init__(self, own: list[socket.socket], siblings: list[socket.socket]) -> None:
        self.counts = MonotonicCounts()
        self.answered = asyncio.Event()
        self._own = own
        self._siblings = siblings
        self._process: asyncio.subprocess.Process | None = None
        self._asking: asyncio.Task[dict[str, Any] | None] | None = None

    @property
    def silence(self) -> str:
        """Why it does not answer."""
        if self._process is None:
            return "a process starts"
        return f"process {self._process.pid} " + ("does not answer" if self.answered.is_set() else "is starting")

    async def keep_running(self, stop: Stop) -> None:
        """Runs until it is told to stop. Raises PresenceError if the first process cannot start."""
        loop = asyncio.get_running_loop()
        stopping = asyncio.create_task(stop.told.wait())
        first = True
        while not stop.told.is_set():
            started = loop.time()
            process = await self._start()
            ended = asyncio.create_task(process.wait())
            watching = asyncio.create_task(self._watch(process))
            await asyncio.wait([ended, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                await self._stop(process, ended, stop)
            watching.cancel()
            self._writer.close()
            self._process = None
            if stop.told.is_set():
                return
            if first and ended.result() > 0 and loop.time() - started < START_SECONDS:
                raise PresenceError("one of the processes could not start; see the line above")
            first = False
            log.error("a receiver process ended (%s); another starts", ending(ended.result()))
            await asyncio.wait([stopping], timeout=RESTART_SECONDS)

    async def _start(self) -> asyncio.subprocess.Process:
        ours, theirs = socket.socketpair()
        with theirs:
            given = Inherited(theirs, self._own, self._siblings)
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "receiver"),
                env={**os.environ, **given.as_environment()},
                pass_fds=given.numbers,
                preexec_fn=die_with_parent,
                start_new_session=True,
            )
        self._reader, self._writer = await asyncio.open_unix_connection(sock=ours, limit=MOST_SAID)
        self.answered.clear()
        self._asking = None
        self._process = process  # from here on it can be asked
        return process

    async def _stop(self, process: asyncio.subprocess.Process, ended: "asyncio.Task[int]", stop: Stop) -> None:
        process.terminate()
        hurrying = asyncio.create_task(stop.hurried.wait())
        await asyncio.wait([ended, hurrying], return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            process.send_signal(signal.SIGINT)
            await ended
        hurrying.cancel()

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """Logs that the process does not answer, and kills it if that lasts."""
        missed, named = 0, False
        while True:
            for each in self._own:  # a process that stops alone leaves them to its siblings
                take_newcomers(each)
            pause = asyncio.create_task(asyncio.sleep(ASK_SECONDS))
            if await self.ask():
                if named:
                    log.info("receiver process %d answers again", process.pid)
                missed, named = 0, False
            elif self._reader.at_eof():  # it is ending
                return
            else:
                missed += 1
                if missed == NAMED_AT and self.answered.is_set():
                    named = True
                    log.error("receiver process %d does not answer", process.pid)
                if missed == (FROZEN_AT if self.answered.is_set() else FROZEN_AT_START):
                    log.error("receiver process %d is frozen, and is killed", process.pid)
                    process.kill()
                    return
            await pause

    async def ask(self) -> dict[str, Any] | None:
        """What the process says about itself; None if it is too late. Callers that ask meanwhile share the answer."""
        if self._process is None:
            return None
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._exchange())
        asking = self._asking
        await asyncio.wait([asking], timeout=ASK_SECONDS)
        return asking.result() if asking.done() else None

    async def _exchange(self) -> dict[str, Any] | None:
        if self._writer.is_closing():  # it ended since it was to be asked; uvloop would raise RuntimeError
            return None
        try:
            self._writer.write(b"?")
            said: dict[str, Any] = json.loads(await self._reader.readline())
        except (OSError, ValueError):  # it has ended
            return None
        self.answered.set()
        return said


class ProcessGroup:
    """What all processes say together. Counts of processes that have ended stay in the sum."""

    def __init__(self, places: list[Place]) -> None:
        self._places = places

    async def health(self) -> dict[str, Any]:
        answers = await self._ask_all()
        silences = [place.silence for place, said in zip(self._places, answers, strict=True) if said is None]
        return {"status": "; ".join(silences) or "alive", "pid": os.getpid()}

    async def readiness(self) -> Readiness:
        answers = await self._ask_all()
        return combine(
            [
                readiness_of(said["readiness"]) if said else place.silence
                for place, said in zip(self._places, answers, strict=True)
            ]
        )

    async def state(self) -> State:
        states = [State(**said["state"]) if said else None for said in await self._ask_all()]
        merged = merge(states, [place.counts for place in self._places])
        dropped = merged.counts.get("log_lines_dropped", 0) + lines_dropped()
        return replace(merged, counts={**merged.counts, "log_lines_dropped": dropped})

    async def _ask_all(self) -> list[dict[str, Any] | None]:
        return await asyncio.gather(*(place.ask() for place in self._places))
