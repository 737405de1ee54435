"""What may import what."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def packages(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


def test_the_reader_needs_redis_py_and_nothing_else() -> None:
    for path in (ROOT / "openim_presence").glob("*.py"):
        assert packages(path) <= {"openim_presence", "redis"} | sys.stdlib_module_names, path


@pytest.mark.parametrize(
    ("files", "forbidden"),
    [
        ("shared/**/*.py", {"receiver", "worker"}),
        ("receiver/**/*.py", {"worker"}),
        ("worker/**/*.py", {"receiver", "aiohttp"}),
        ("receiver/callback.py", {"aiohttp", "redis", "rq", "os", "time"}),
        ("receiver/journal/*.py", {"aiohttp", "redis", "rq"}),
    ],
)
def test_nothing_imports_what_it_must_not_know(files: str, forbidden: set[str]) -> None:
    paths = list(ROOT.glob(files))
    assert paths
    for path in paths:
        assert not packages(path) & forbidden, path
