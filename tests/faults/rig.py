"""Real programs under load, and the comparison of what was accepted with what presence says."""

import asyncio
import random
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from support import Process, Receiver, Server, Worker, wait_until

from shared.cli import embedded
from shared.cli.openim import request

RATE = 500  # events/s, the load of docs/promises.md
CONNECTIONS = 4
PING_RATE = 100  # pings/s of an idle server
#: The changes of this many users are certainly still on the stream, and are read quickly.
FEED_MOST = 100_000


@dataclass
class Report:
    """The result of one scenario. recovery_seconds: from the repair until everything was applied.

    p99_ms, max_ms: of the receiver's answers. idle_p99_ms: of a server that has nothing else to do, asked by the same
    client at the same time: how long an answer takes on this machine at that moment.
    """

    scenario: str
    accepted: int = 0
    unanswered: int = 0
    refused: int = 0
    lost: int = 0
    kills: int = 0
    recovery_seconds: float = 0.0
    p99_ms: float = 0.0
    max_ms: float = 0.0
    idle_p99_ms: float = 0.0


class Load(threading.Thread):
    """Sends events, each of a user of its own, at a steady rate, whatever becomes of them."""

    def __init__(self, receiver: Receiver, rate: int = RATE, prefix: str = "u", idle: Server | None = None) -> None:
        super().__init__(daemon=True)
        self.url = f"http://127.0.0.1:{receiver.port}/x"
        self.rate = rate
        self.prefix = prefix
        self.accepted: dict[str, str] = {}  # user -> the status that it must have
        self.seconds: list[float] = []
        self.idle_seconds: list[float] = []
        self.refused = 0
        self.unanswered = 0
        self._idle = idle
        self._stopping = threading.Event()

    def run(self) -> None:
        asyncio.run(self._send())

    def stop(self) -> None:
        self._stopping.set()
        self.join()

    async def _send(self) -> None:
        started = time.monotonic()
        number = 0

        async def sender(session: aiohttp.ClientSession) -> None:
            nonlocal number
            while not self._stopping.is_set():
                mine, number = number, number + 1
                await asyncio.sleep(max(0.0, started + mine / self.rate - time.monotonic()))
                await self._send_one(session, mine)

        timeout = aiohttp.ClientTimeout(total=5)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            await asyncio.gather(self._ping(), *(sender(session) for _ in range(CONNECTIONS)))

    async def _ping(self) -> None:
        if not self._idle:
            return
        reader, writer = await asyncio.open_connection("127.0.0.1", self._idle.port)
        while not self._stopping.is_set():
            await asyncio.sleep(1 / PING_RATE)
            began = time.perf_counter()
            writer.write(b"PING\r\n")
            await reader.readline()
            self.idle_seconds.append(time.perf_counter() - began)
        writer.close()

    async def _send_one(self, session: aiohttp.ClientSession, number: int) -> None:
        user, step = f"{self.prefix}{number}", ("Online", "Offline")[number % 2]
        callback = request("v3.8", self.url, step, user, time.time_ns() // 1_000_000)  # type: ignore[arg-type]
        began = time.perf_counter()
        try:
            async with session.post(callback.url, data=callback.body, headers=callback.headers) as response:
                body = await response.read()
        except (aiohttp.ClientError, TimeoutError):
            self.unanswered += 1
            await asyncio.sleep(0.02)  # no receiver listens
            return
        self.seconds.append(time.perf_counter() - began)
        if response.status == 200 and b'"actionCode":0' in body:
            self.accepted[user] = step.lower()
        else:
            self.refused += 1


@dataclass
class Rig:
    """One scenario's programs. Everything random comes from `random`, whose seed is the run's."""

    scenario: str
    directory: Path
    random: random.Random
    long: bool
    report: Report = field(init=False)
    processes: list[Process] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)
    healed_at: float = 0.0

    def __post_init__(self) -> None:
        self.report = Report(self.scenario)

    def server(self, name: str = "redis", **options: str) -> Server:
        server = Server(self.directory / name, embedded.find_server(), **options)
        self.processes.append(server)
        return server

    def receiver(self, redis_url: str, name: str = "receiver", **settings: str) -> Receiver:
        settings = {"journal_dir": str(self.directory / "journal")} | settings
        receiver = Receiver(self.directory / name, redis_url, name, **settings)
        self.processes.append(receiver)
        return receiver

    def worker(self, redis_url: str, name: str = "worker", **settings: str) -> Worker:
        worker = Worker(self.directory, redis_url, name, **settings)
        self.processes.append(worker)
        return worker

    def program(self, command: list[str], environment: dict[str, str], name: str) -> Process:
        process = Process(command, environment, self.directory, name)
        self.processes.append(process)
        return process

    def kill(self, process: Process) -> None:
        process.kill()
        self.report.kills += 1

    def load(self, receiver: Receiver, rate: int = RATE, idle: Server | None = None) -> Load:
        """idle: a server to ask beside the receiver, for comparison."""
        load = Load(receiver, rate, f"u{len(self.loads)}-", idle)
        self.loads.append(load)
        load.start()
        return load

    def seconds_of_load(self, load: Load, seconds: float) -> None:
        """Lets the load go on until this many seconds' worth of events were tried."""
        tried = self._tried(load) + int(seconds * load.rate)
        wait_until(lambda: self._tried(load) >= tried, 60 + 3 * seconds, "the load to go on")

    @staticmethod
    def _tried(load: Load) -> int:
        return len(load.seconds) + load.unanswered

    def healed(self) -> None:
        """Notes that nothing is broken any more: the time of the recovery begins now."""
        self.healed_at = time.monotonic()

    def wait_until_applied(self, server: Server, within: float = 30.0) -> None:
        """Ends the load, and waits until presence shows every user as the last accepted event says."""
        for load in self.loads:
            load.stop()
        expected = {user: status for load in self.loads for user, status in load.accepted.items()}
        missing = set(expected)
        give_up_at = max(self.healed_at, time.monotonic()) + within
        while missing and time.monotonic() < give_up_at:
            missing = self._not_applied(server, expected, missing)
            if missing:
                time.sleep(0.05)
        self.report.recovery_seconds = round(time.monotonic() - self.healed_at, 2) if self.healed_at else 0.0
        self._sum_up(len(expected), len(missing))
        assert not missing, f"{len(missing)} of {len(expected)} accepted events were not applied: {self.logs()}"
        self._check_feed(server, expected)

    @staticmethod
    def _check_feed(server: Server, expected: dict[str, str]) -> None:
        """Checks the stream: each user had one event, so it has one change of each, whatever was killed."""
        if len(expected) > FEED_MOST:
            return  # the stream is trimmed
        entries: list[Any] = server.client.xrange("presence-changes")
        counts = Counter(fields[b"user_id"].decode() for _, fields in entries)
        wrong = {user: counts[user] for user in expected if counts[user] != 1}
        assert not wrong, f"not exactly one change: {dict(list(wrong.items())[:10])} and so on, {len(wrong)} in all"
        assert not any(fields[b"previous"] for _, fields in entries)

    @staticmethod
    def _not_applied(server: Server, expected: dict[str, str], users: set[str]) -> set[str]:
        ordered = sorted(users)
        wrong = set()
        for start in range(0, len(ordered), 5000):
            chunk = ordered[start : start + 5000]
            pipeline = server.client.pipeline(transaction=False)
            for user in chunk:
                pipeline.hget(f"presence:{user}", "status")
            for user, status in zip(chunk, pipeline.execute(), strict=True):
                if status != expected[user].encode():
                    wrong.add(user)
        return wrong

    def _sum_up(self, accepted: int, lost: int) -> None:
        self.report.accepted = accepted
        self.report.lost = lost
        self.report.refused = sum(load.refused for load in self.loads)
        self.report.unanswered = sum(load.unanswered for load in self.loads)
        seconds = sorted(second for load in self.loads for second in load.seconds)
        self.report.p99_ms, self.report.max_ms = _ms(seconds, 0.99), _ms(seconds, 1)
        self.report.idle_p99_ms = _ms(sorted(second for load in self.loads for second in load.idle_seconds), 0.99)

    def logs(self) -> str:
        return "\n".join(f"--- {process.log.name}\n{process.text()[-2000:]}" for process in self.processes)


def _ms(ordered: list[float], part: float) -> float:
    return round(ordered[int((len(ordered) - 1) * part)] * 1000, 2) if ordered else 0.0


@contextmanager
def rig(scenario: str, seed: int, *, long: bool = False) -> Iterator[Rig]:
    """A rig in a directory of its own. Afterwards none of its programs runs, and no file remains."""
    directory = Path(tempfile.mkdtemp(prefix=f"faults-{scenario}-"))
    made = Rig(scenario, directory, random.Random(f"{scenario}-{seed}"), long)
    try:
        yield made
    finally:
        for load in made.loads:
            load.stop()
        for process in made.processes:
            process.kill()
        shutil.rmtree(directory, ignore_errors=True)
