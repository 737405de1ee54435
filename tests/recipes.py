"""The programs in the documentation, taken out of it and run as they stand."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, Process

URL, ADDRESS = "redis://127.0.0.1:6379/0", "127.0.0.1:6379"
#: Where Debian's package puts redigo.
GOPATH = Path("/usr/share/gocode")


def block(page: str, name: str) -> str:
    """The code block of docs/<page> whose first line is a comment with this name."""
    blocks = re.findall(r"^```\w+\n(.*?)^```$", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)
    (found,) = (each for each in blocks if re.match(rf"(#|//|--) {re.escape(name)}\n", each))
    return str(found)


def write(directory: Path, page: str, name: str, port: int, **constants: str) -> Path:
    """Writes a program where it can be run, with the server's port and with other constants at its top.

    constants: the new value for each `NAME = value` of the program.
    """
    text = block(page, name)
    for constant, value in constants.items():
        text, count = re.subn(rf"^(\s*)({constant}\s*=) .*$", rf"\1\2 {value}", text, flags=re.MULTILINE)
        assert count == 1, constant
    path = directory / name
    path.write_text(text.replace(ADDRESS, f"127.0.0.1:{port}"))
    return path


def command(path: Path) -> list[str]:
    """What runs the program; skips the test, and says why, where the machine does not have it."""
    return {".py": _python, ".go": _go, ".mjs": _node}[path.suffix](path)


def _python(path: Path) -> list[str]:
    return [sys.executable, str(path)]


def _go(path: Path) -> list[str]:
    if not shutil.which("go") or not (GOPATH / "src/github.com/gomodule/redigo").is_dir():
        pytest.skip("needs golang-go and golang-github-gomodule-redigo-dev")
    environment = {**os.environ, "GOPATH": str(GOPATH), "GO111MODULE": "off"}
    for step in (["gofmt", "-d"], ["go", "vet"], ["go", "build", "-o", str(path.with_suffix(""))]):
        done = subprocess.run([*step, str(path)], env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), step
    return [str(path.with_suffix(""))]


def _node(path: Path) -> list[str]:
    node, modules = shutil.which("node"), os.environ.get("NODE_PATH", "")
    if not node or not (Path(modules) / "redis").is_dir():
        pytest.skip("needs node, and the folder that `npm install redis` made in NODE_PATH")
    if not (path.parent / "node_modules").exists():
        (path.parent / "node_modules").symlink_to(modules)
    return [node, str(path)]


def run(path: Path, *arguments: str) -> str:
    """What the program prints."""
    done = subprocess.run(
        [*command(path), *arguments], cwd=path.parent, capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


class Recipe(Process):
    """A program that runs until it is killed."""

    def __init__(self, path: Path) -> None:
        super().__init__(command(path), {}, path.parent, path.name)
