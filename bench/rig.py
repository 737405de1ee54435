"""What the benchmarks share: real programs on random ports, and tables of medians."""

import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from support import Process, Receiver, Server, Worker, free_port, listens, wait_until

from shared.cli import embedded

__all__ = [
    "Bare",
    "Receiver",
    "Server",
    "Worker",
    "applied",
    "bench",
    "describe",
    "resident_mb",
    "row",
    "wait_until",
]


class Bare(Process):
    """The server of bench/bare.py."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        command = [sys.executable, str(Path(__file__).parent / "bare.py"), str(self.port)]
        super().__init__(command, {}, directory, "bare")
        wait_until(lambda: listens(self.port))


@contextmanager
def bench() -> Iterator[tuple[Path, list[Process]]]:
    """A directory, and a list of programs to be killed at the end."""
    describe()
    programs: list[Process] = []
    with tempfile.TemporaryDirectory() as directory:
        try:
            yield Path(directory), programs
        finally:
            for program in programs:
                program.kill()


def describe() -> None:
    names = ("aiohttp", "uvloop", "pydantic", "redis", "rq")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    print(f"Python {sys.version.split()[0]}, {versions}, {embedded.find_server().name}, {os.cpu_count()} cores")


def applied(server: Server) -> int:
    """How many events presence has counted."""
    counts = server.client.hgetall("presence-stats")
    return sum(int(counts.get(name, 0)) for name in (b"applied", b"duplicate", b"stale"))


def resident_mb(program: Process, peak: bool = False) -> float:
    status = Path(f"/proc/{program.popen.pid}/status").read_text()
    field = "VmHWM" if peak else "VmRSS"
    return int(next(line for line in status.splitlines() if line.startswith(field)).split()[1]) / 1024


def row(name: str, values: list[float], unit: str = "", baseline: list[float] | None = None) -> None:
    """Prints the median, the spread, and the median of the ratios to the baseline in the same round."""
    line = f"{name:<44} {statistics.median(values):>10,.2f} {unit:<4} ({min(values):,.2f} to {max(values):,.2f})"
    if baseline:
        ratios = [value / other for value, other in zip(values, baseline, strict=True)]
        line += f"   ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    print(line, flush=True)
