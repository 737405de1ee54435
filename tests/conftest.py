"""A private server for the whole run, emptied for each test, and programs that end with their test."""

import os
import shutil
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import hypothesis
import pytest
from redis import Redis
from support import Process, Receiver, Server, Worker

from shared.cli import embedded

# An example that takes 200 ms shows that the machine is busy, and nothing about the code.
hypothesis.settings.register_profile("any-machine", deadline=None)
hypothesis.settings.load_profile("any-machine")


# Where the tests run in the background, a shell may have told them to ignore Ctrl-C. Programs would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _binaries() -> list[Path]:
    """The bundled Valkey always; a Redis of the machine's own as well, if there is one."""
    found = [embedded.find_server()]
    if redis := shutil.which("redis-server"):
        found.append(Path(redis))
    return found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """If SKIP_NOTHING is set, as in the workflows, a test that this machine cannot run has failed."""
    report = yield
    if report.skipped and call.excinfo and os.environ.get("SKIP_NOTHING"):
        report.outcome = "failed"
        report.longrepr = f"SKIP_NOTHING is set, and this test {call.excinfo.value}"
    return report


@pytest.fixture(scope="session", params=_binaries(), ids=lambda path: path.name)
def shared_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"), request.param, appendonly="no")
    yield server
    server.kill()


@pytest.fixture
def server(shared_server: Server) -> Server:
    shared_server.client.flushall()
    return shared_server


@pytest.fixture
def redis(server: Server) -> Redis:
    return server.client


@pytest.fixture
def keep() -> Iterator[Callable[[Process], Process]]:
    """Registers a program to be killed at the end."""
    processes: list[Process] = []

    def register(process: Process) -> Process:
        processes.append(process)
        return process

    yield register
    for process in processes:
        process.kill()


@pytest.fixture(scope="session")
def shared_tmp(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A folder that all processes of the test run have in common."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if hasattr(request.config, "workerinput") else own


@pytest.fixture
def receiver(server: Server, tmp_path: Path, keep: Callable[[Process], Process]) -> Receiver:
    receiver = Receiver(tmp_path, server.url)
    keep(receiver)
    return receiver


@pytest.fixture
def worker(server: Server, tmp_path: Path, keep: Callable[[Process], Process]) -> Worker:
    worker = Worker(tmp_path, server.url)
    keep(worker)
    return worker
