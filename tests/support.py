"""Real servers and real processes for the tests, and waiting for conditions."""

import http.client
import inspect
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryFile
from types import SimpleNamespace
from typing import IO, Any

import pytest
import warm
from redis import Redis
from redis.exceptions import RedisError

from shared.cli import embedded, text
from shared.redis import clock
from shared.redis.client import connect
from worker.store import library

#: The installed command.
PRESENCE = warm.PRESENCE
SAMPLES = Path(__file__).parent / "samples"
ROOT = Path(__file__).parent.parent

#: For tests in which all servers behave alike: they run only against the bundled Valkey.
on_one_server = pytest.mark.parametrize("shared_server", [embedded.find_server()], indirect=True, ids=["valkey"])

#: Options of redis-py's clients that change the form of replies.
REPLY_FORMS: list[dict[str, Any]] = [{}, {"protocol": 2}, {"protocol": 3}, {"protocol": 3, "decode_responses": True}]
if "legacy_responses" in inspect.signature(Redis.__init__).parameters:
    REPLY_FORMS.append({"legacy_responses": False})


def wait_until(condition: Callable[[], Any], seconds: float = 20.0, what: str = "") -> Any:
    """The condition's first true value. Fails the test if there is none in time."""
    give_up_at = time.monotonic() + seconds
    while True:
        if value := condition():
            return value
        if time.monotonic() > give_up_at:
            raise AssertionError(f"waited {seconds} s in vain for {what or condition}")
        time.sleep(0.01)


def _ports() -> Iterator[int]:
    """For each process of pytest others, in turn, all below those that the kernel gives to clients.

    If it gave a client the port of a program that is being restarted, that could not start.
    """
    place = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 10
    share = range(12_000 + 2000 * place, 14_000 + 2000 * place)
    begin = secrets.randbelow(len(share))  # another run of the tests may be under way
    return cycle([*share[begin:], *share[:begin]])


_PORTS = _ports()


def free_port() -> int:
    while True:
        port = next(_PORTS)
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def listens(port: int) -> bool:
    """Whether a program listens at the port of loopback."""
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as connection:
            # The kernel may give the connection this very port, and TCP then connects it to itself.
            return bool(connection.getsockname() != connection.getpeername())
    except OSError:
        return False


def start(
    command: list[str], environment: dict[str, str], directory: Path, stdout: IO[bytes], stderr: IO[bytes]
) -> warm.Program | subprocess.Popen[bytes]:
    if warm.can_start(command, environment):
        return warm.interpreter().start(command, environment, directory, stdout.fileno(), stderr.fileno())
    return subprocess.Popen(command, env=environment, cwd=directory, stdout=stdout, stderr=stderr)


def presence(
    *arguments: str, cwd: Path | None = None, seconds: float = 60.0, **settings: str
) -> "subprocess.CompletedProcess[str]":
    """Runs the command to its end, with these settings and no others."""
    command = [sys.executable, warm.PRESENCE, *arguments]
    with TemporaryFile() as stdout, TemporaryFile() as stderr:
        program = start(command, {**_clean_environment(), **settings}, cwd or Path.cwd(), stdout, stderr)
        try:
            code = program.wait(seconds)
        finally:
            program.kill()
        texts = []
        for file in (stdout, stderr):
            file.seek(0)
            texts.append(file.read().decode())
    return subprocess.CompletedProcess(command, code, *texts)


class Process:
    """A program that is killed at the end of its test, and whose standard error is kept."""

    def __init__(self, command: list[str], environment: dict[str, str], directory: Path, name: str) -> None:
        self.command = command
        self.environment = {**_clean_environment(), **environment}
        self.directory = directory
        self.log = directory / f"{name}.log"
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.popen = start(self.command, self.environment, self.directory, log, log)

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def kill(self) -> None:
        """Sends SIGKILL, whatever state it is in, also to what it has started: nothing goes on beside the next test."""
        started = children(self)
        self.popen.kill()
        self.popen.wait()
        for pid in started:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: all(map(gone, started)), what="its processes to end")

    def stop(self, seconds: float = 20.0) -> int:
        """Sends SIGTERM. The exit code."""
        self.popen.terminate()
        return self.popen.wait(seconds)

    def text(self) -> str:
        return self.log.read_text()


def with_constants(monkeypatch: pytest.MonkeyPatch, **constants: int) -> None:
    """Makes the functions of worker/store/lua use other constants."""
    source = library.SOURCE
    for name, value in constants.items():
        source, found = re.subn(rf"(?m)^local {name} = \d+", f"local {name} = {value}", source)
        assert found == 1, name
    name = "_".join(map(str, (library.NAME, *constants.values())))
    monkeypatch.setattr(library, "SOURCE", source.replace(library.NAME, name))
    monkeypatch.setattr(library, "NAME", name)


def set_clock_ahead(monkeypatch: pytest.MonkeyPatch, seconds: int) -> None:
    """Sets the clock of this process, as the commands read it, that far ahead of the server's."""
    ahead = SimpleNamespace(**{**vars(time), "time_ns": lambda: time.time_ns() + seconds * 10**9})
    for module in (clock, text):
        monkeypatch.setattr(module, "time", ahead)


def gone(pid: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def children(process: Process) -> set[int]:
    """The ids of the processes that it has started."""
    threads = Path(f"/proc/{process.popen.pid}/task")
    return {int(pid) for path in threads.glob("*/children") for pid in path.read_text().split()}


def _clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PRESENCE_")}


class Server(Process):
    """A private Redis or Valkey on a random port of loopback, with an append-only file."""

    def __init__(self, directory: Path, binary: Path | None = None, **options: str | tuple[str, ...]) -> None:
        self.port = free_port()
        password = f":{options['requirepass']}@" if "requirepass" in options else ""
        self.url = f"redis://{password}127.0.0.1:{self.port}/0"
        directory.mkdir(parents=True, exist_ok=True)
        command = embedded.arguments(binary or embedded.find_server(), self.port, directory)
        for name, value in options.items():
            command += [f"--{name.replace('_', '-')}", *([value] if isinstance(value, str) else value)]
        super().__init__(command, {}, directory, "server")
        self.client = connect(self.url)
        self.wait()

    def wait(self) -> None:
        wait_until(self.answers, what="the server")

    def answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except RedisError:
            return False

    def restart(self) -> None:
        self.start()
        self.wait()


class Receiver(Process):
    """`python -m receiver` on random ports."""

    def __init__(self, directory: Path, redis_url: str, name: str = "receiver", **settings: str) -> None:
        self.port, self.admin_port = free_port(), free_port()
        directory.mkdir(parents=True, exist_ok=True)
        environment = {
            "PRESENCE_REDIS_URL": redis_url,
            "PRESENCE_HOST": "127.0.0.1",
            "PRESENCE_PORT": str(self.port),
            "PRESENCE_ADMIN_PORT": str(self.admin_port),
            "PRESENCE_JOURNAL_DIR": str(directory / "journal"),
        } | {f"PRESENCE_{key.upper()}": value for key, value in settings.items()}
        super().__init__([sys.executable, "-m", "receiver"], environment, directory, name)
        self.wait()

    def wait(self) -> None:
        wait_until(lambda: self._listens() or self.popen.poll() is not None, what="the receiver")
        assert self.popen.poll() is None, self.text()

    def _listens(self) -> bool:
        """The admin port comes last."""
        ports = {self.environment["PRESENCE_PORT"], self.environment["PRESENCE_ADMIN_PORT"]} - {"0"}
        return all(listens(int(port)) for port in ports)

    def post(self, target: str, headers: dict[str, str], body: bytes, method: str = "POST") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, target, body, headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def readiness(self) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=10)
        try:
            connection.request("GET", "/readyz")
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()


class Hasty(Receiver):
    """A receiver with other limits, such as `{"http.connections.HEAD_SECONDS": 1}`: no test waits for the real ones."""

    def __init__(self, directory: Path, redis_url: str, limits: dict[str, float], **settings: str) -> None:
        lines = [f"import receiver.{name.rpartition('.')[0]}" for name in limits]
        lines += [f"receiver.{name} = {value}" for name, value in limits.items()]
        self._program = "\n".join([*lines, "from receiver.__main__ import main", "raise SystemExit(main())"])
        super().__init__(directory, redis_url, **settings)

    def start(self) -> None:
        self.command = [sys.executable, "-c", self._program]
        super().start()


class Worker(Process):
    """`python -m worker`."""

    def __init__(self, directory: Path, redis_url: str, name: str = "worker", **settings: str) -> None:
        environment = {"PRESENCE_REDIS_URL": redis_url} | {
            f"PRESENCE_{key.upper()}": value for key, value in settings.items()
        }
        super().__init__([sys.executable, "-m", "worker"], environment, directory, name)


def load_samples(kind: str) -> list[dict[str, Any]]:
    """The recorded payloads: one file for each shape and each refusal."""
    samples = []
    for path in sorted((SAMPLES / kind).glob("*.json")):
        sample = json.loads(path.read_text())
        sample["name"] = path.stem
        if depth := sample.get("depth"):  # how deep Python's versions read differs; none reads that deep
            sample["body"] = sample["body"].replace("[]", "[" * depth + "]" * depth)
        sample["body"] = bytes.fromhex(sample["body_hex"]) if "body_hex" in sample else sample["body"].encode()
        samples.append(sample)
    return samples


def same_answer(body: bytes, expected: dict[str, Any] | str) -> bool:
    """Compares answers; a refusal's errDlt of None stands for any text, the JSON reader's own."""
    if isinstance(expected, str):
        return body == expected.encode()
    answer = json.loads(body)
    if expected["errDlt"] is None:
        return bool(answer["errDlt"]) and {**answer, "errDlt": None} == expected
    return bool(answer == expected)
