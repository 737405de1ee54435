"""The programs of examples/, run as they are.

The documents show some of them. `python tests/recipes.py` copies them there again after a change.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, Process

EXAMPLES = ROOT / "examples"
ADDRESS = "127.0.0.1:6379"
#: Where Debian's package puts redigo.
GOPATH = Path("/usr/share/gocode")


def text(name: str) -> str:
    """The program, whose first line is a comment with its name."""
    return (EXAMPLES / name).read_text()


def with_programs(page: str) -> str:
    """The text of a page with each program in it as it is in examples/."""
    names = "|".join(re.escape(path.name) for path in EXAMPLES.iterdir())
    shown = re.compile(rf"^(```\w+\n)(?:#|//|--) ({names})\n.*?^```$", re.MULTILINE | re.DOTALL)
    return shown.sub(lambda found: f"{found[1]}{text(found[2])}```", page)


def write(directory: Path, name: str, port: int, **constants: str) -> Path:
    """Writes a program where it can be run, with the server's port and with other constants at its top.

    constants: the new value for each `NAME = value` of the program.
    """
    program = text(name)
    for constant, value in constants.items():
        program, count = re.subn(rf"^(\s*)({constant}\s*=) .*$", rf"\1\2 {value}", program, flags=re.MULTILINE)
        assert count == 1, constant
    path = directory / name
    path.write_text(program.replace(ADDRESS, f"127.0.0.1:{port}"))
    return path


def command(path: Path) -> list[str]:
    """The command that runs the program. If the machine does not have it, skips the test and says why."""
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
    """Runs the program. What it prints."""
    done = subprocess.run(
        [*command(path), *arguments], cwd=path.parent, capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


class Recipe(Process):
    """A program that runs until it is killed."""

    def __init__(self, path: Path) -> None:
        super().__init__(command(path), {}, path.parent, path.name)


if __name__ == "__main__":
    for page in (ROOT / "docs").glob("*.md"):
        page.write_text(with_programs(page.read_text()))
