"""The programs of docs/ and examples/, run as they stand: only their servers and their times are others."""

import fcntl
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from support import ROOT, Process

from shared.events import Event
from shared.settings import Settings
from worker.store.store import Outcome, Store

ON, OFF = "callbackUserOnlineCommand", "callbackUserOfflineCommand"
EXAMPLES = ROOT / "examples"
ADDRESS = "127.0.0.1:6379"
#: A block of code whose first line is a comment with its name, such as `# who.py`.
SHOWN = re.compile(r"^```\w+\n((?:#|//|--) (\w+\.\w+)\n.*?)^```$", re.MULTILINE | re.DOTALL)


def shown() -> dict[str, str]:
    """The programs in the pages of docs/, by their names."""
    found = [match for page in sorted((ROOT / "docs").glob("*.md")) for match in SHOWN.findall(page.read_text())]
    programs = {name: program for program, name in found}
    assert len(programs) == len(found), "two programs have one name"
    return programs


def text(name: str) -> str:
    """A file of examples/, or a program that a page shows."""
    return (EXAMPLES / name).read_text() if (EXAMPLES / name).exists() else shown()[name]


def with_constants(program: str, **constants: str) -> str:
    """The program with other values. constants: the new value for each `NAME = value` at its top."""
    for constant, value in constants.items():
        program, count = re.subn(rf"(?m)^(\s*(?:const )?{constant}\s*=) .*$", rf"\1 {value}", program)
        assert count == 1, constant
    return program


def set_constants(path: Path, **constants: str) -> None:
    """As `with_constants`, in a file."""
    path.write_text(with_constants(path.read_text(), **constants))


def write(directory: Path, name: str, port: int = 0, **constants: str) -> Path:
    """Writes a program where it can be run. port: of the server, for one that has the address in its text."""
    path = directory / name
    path.write_text(with_constants(text(name), **constants).replace(ADDRESS, f"127.0.0.1:{port}" if port else ADDRESS))
    return path


def run(path: Path, *arguments: str) -> str:
    """What a Python program prints."""
    done = subprocess.run(
        [sys.executable, str(path), *arguments],
        cwd=path.parent,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


class Gateway:
    """Applies events as a worker does."""

    def __init__(self, redis: Redis) -> None:
        self.store = Store(redis, Settings())
        self.seq = 0

    def __call__(self, command: Any, *users: str, at: int | None = None) -> None:
        self.seq += 1
        now = int(time.time() * 1000) if at is None else at
        events = [Event(user, command, self.seq, "", 1, "IOS", "", now) for user in users]
        assert all(isinstance(outcome, Outcome) for outcome in self.store.apply(events))


class Recipe(Process):
    """A Python program that runs until it is killed. environment: its settings."""

    def __init__(self, path: Path, **environment: str) -> None:
        super().__init__([sys.executable, str(path)], environment, path.parent, path.name)


# Go and Node: what they need is fetched and built once for all processes of a test run.


def make_once(shared: Path, name: str, make: Callable[[Path], str]) -> Path:
    """The folder `name` as `make` fills it. If `make` says why this machine cannot, skips the test."""
    folder, why = shared / name, shared / f"{name}.why"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not why.exists():
            shutil.copytree(EXAMPLES / name, folder, ignore=shutil.ignore_patterns("node_modules"))
            why.write_text(make(folder))
    if why.read_text():
        pytest.skip(why.read_text())
    return folder


def make_go(folder: Path) -> str:
    """Programs of examples/go as `bin/reader` and `bin/consumer`."""
    set_constants(folder / "consumer" / "main.go", takeOver="200 * time.Millisecond")
    if not has_go():
        return "needs Go 1.22 or newer"
    if failure := fetch(["go", "mod", "download"], folder):
        return failure
    (folder / "bin").mkdir()
    for step in (["gofmt", "-d", "."], ["go", "vet", "./..."], ["go", "build", "-o", "bin", "./..."]):
        done = subprocess.run(step, cwd=folder, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), step
    return ""


def make_node(folder: Path) -> str:
    """examples/node with its packages."""
    if not shutil.which("node") or not shutil.which("npm"):
        return "needs Node and npm"
    set_constants(folder / "reader.mjs", SILENCE_MS="1500")
    return fetch(["npm", "install", "--engine-strict", "--no-audit", "--no-fund"], folder)


def has_go() -> bool:
    """From 1.21 on, Go fetches a newer Go if it needs one."""
    if not shutil.which("go"):
        return False
    version = subprocess.run(["go", "env", "GOVERSION"], capture_output=True, text=True, check=True).stdout
    return tuple(map(int, re.findall(r"\d+", version)[:2])) >= (1, 21)


def fetch(command: list[str], folder: Path) -> str:
    """Why it failed, or "". Only the network may be at fault."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        return f"`{' '.join(command)}` did not end within 120 s"
    return "" if done.returncode == 0 else f"`{' '.join(command)}` failed: {done.stderr.strip()[-300:]}"
