"""If standard output or error is closed, full, or not read, no program is held up and no exit code changes."""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis
from support import PRESENCE, Process, Receiver, Server, Worker, children, free_port, on_one_server, wait_until
from test_metrics import post, scrape

pytestmark = on_one_server
Keep = Callable[[Process], Process]
PIPE_BYTES = 4096


class Up(Process):
    """`presence up` with a server of the test's."""

    def __init__(self, directory: Path, redis_url: str) -> None:
        ports = {"PRESENCE_PORT": str(free_port()), "PRESENCE_ADMIN_PORT": str(free_port())}
        super().__init__([sys.executable, PRESENCE, "up"], {"PRESENCE_REDIS_URL": redis_url, **ports}, directory, "up")


def write_to(descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets every program that the test starts write there."""

    def start(self: Process) -> None:
        self.popen = subprocess.Popen(
            self.command, env=self.environment, cwd=self.directory, stdout=descriptor, stderr=descriptor
        )

    monkeypatch.setattr(Process, "start", start)


@pytest.fixture
def _nobody_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A pipe that does not take one more byte."""
    ours, theirs = os.pipe()
    fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    os.write(theirs, b"x" * PIPE_BYTES)
    write_to(theirs, monkeypatch)
    yield
    os.close(ours)
    os.close(theirs)


@pytest.fixture(params=["closed", "reader gone", "disk full"])
def _nothing_can_be_written(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.param == "closed":

        def start(self: Process) -> None:
            command = ["bash", "-c", 'exec "$@" <&- >&- 2>&-', "bash", *self.command]
            self.popen = subprocess.Popen(command, env=self.environment, cwd=self.directory)

        monkeypatch.setattr(Process, "start", start)
        yield
        return
    descriptor = os.open("/dev/full", os.O_WRONLY)
    if request.param == "reader gone":
        ours, theirs = os.pipe()
        os.dup2(theirs, descriptor)
        os.close(ours)
        os.close(theirs)
    write_to(descriptor, monkeypatch)
    yield
    os.close(descriptor)


@pytest.mark.usefixtures("_nobody_reads")
@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_receiver_answers_pushes_and_stops_where_nobody_reads_its_log(
    server: Server, tmp_path: Path, keep: Keep, processes: str
) -> None:
    receiver = Receiver(tmp_path, server.url, processes=processes, log_level="debug")
    keep(receiver)
    for number in range(50):  # a line each
        post(receiver, f"u{number}")
    assert receiver.post("/", {}, b"", "GET")[0] == 405
    wait_until(lambda: receiver.readiness()[1]["journal_events"] == 0)
    assert receiver.stop() == 0


@pytest.mark.usefixtures("_nobody_reads")
def test_what_does_not_fit_is_left_out_and_counted(
    server: Server, tmp_path: Path, keep: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = "import shared.logs.streams as s; s.MAX_BYTES = 2000; import receiver.__main__ as m; m.main()"
    start = Process.start

    def start_brief(self: Process) -> None:
        self.command = [sys.executable, "-c", program]
        start(self)

    monkeypatch.setattr(Process, "start", start_brief)
    receiver = Receiver(tmp_path, server.url, log_level="debug")
    keep(receiver)
    for number in range(30):
        post(receiver, f"u{number}")
    assert scrape(receiver.admin_port)["presence_log_lines_dropped_total",] > 1


@pytest.mark.usefixtures("_nobody_reads")
def test_a_worker_applies_and_stops_where_nobody_reads_its_log(
    server: Server, redis: Redis, tmp_path: Path, keep: Keep
) -> None:
    port = free_port()
    worker = Worker(tmp_path, server.url, log_level="debug", worker_admin_port=str(port))
    keep(worker)
    receiver = Receiver(tmp_path, server.url)
    keep(receiver)
    for number in range(50):
        post(receiver, f"u{number}")
    wait_until(lambda: redis.exists("presence:u49"))
    assert scrape(port)["presence_log_lines_dropped_total",] == 0  # they wait
    assert worker.stop() == 0


@pytest.mark.usefixtures("_nobody_reads")
def test_presence_up_restarts_and_stops_where_nobody_reads_its_output(
    server: Server, tmp_path: Path, keep: Keep
) -> None:
    up = Up(tmp_path, server.url)
    keep(up)
    first = wait_until(lambda: len(found := children(up)) == 2 and found)
    os.kill(min(first), signal.SIGKILL)
    wait_until(lambda: len(found := children(up)) == 2 and found != first)
    assert up.stop(30) == 0


@pytest.mark.usefixtures("_nothing_can_be_written")
@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_receiver_ends_with_0_all_the_same(server: Server, tmp_path: Path, keep: Keep, processes: str) -> None:
    receiver = Receiver(tmp_path, server.url, processes=processes, log_level="debug")
    keep(receiver)
    wait_until(lambda: receiver.readiness()[0] == 200)
    post(receiver, "alice")
    assert receiver.stop() == 0


@pytest.mark.usefixtures("_nothing_can_be_written")
def test_a_worker_ends_with_0_all_the_same(server: Server, redis: Redis, tmp_path: Path, keep: Keep) -> None:
    worker = Worker(tmp_path, server.url, log_level="debug")
    keep(worker)
    wait_until(lambda: redis.scard("rq:workers:presence"))
    assert worker.stop() == 0


@pytest.mark.usefixtures("_nothing_can_be_written")
def test_presence_up_ends_with_0_all_the_same(server: Server, redis: Redis, tmp_path: Path, keep: Keep) -> None:
    up = Up(tmp_path, server.url)
    keep(up)
    wait_until(lambda: redis.scard("rq:workers:presence"))
    assert up.stop(30) == 0
