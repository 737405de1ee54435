"""Which room may import which."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("openim_presence", "receiver", "worker", "shared")

#: For each room, the others that it may import. All but the reader may import shared's own modules as well.
ROOMS: dict[str, set[str]] = {
    "openim_presence": set(),
    "shared": {"openim_presence", "shared.logs", "shared.redis"},
    "shared.logs": set(),
    "shared.redis": {"shared.logs"},
    "shared.gateways": set(),
    "shared.openim": set(),
    "shared.truth": {"openim_presence", "shared.gateways", "shared.openim", "shared.redis"},
    "shared.observe": {"openim_presence", "shared.gateways", "shared.logs", "shared.redis", "shared.truth"},
    "shared.why": {
        *("openim_presence", "shared.logs", "shared.redis", "shared.observe", "shared.openim", "shared.truth"),
    },
    "shared.doctor": {"shared.observe", "shared.openim", "shared.redis"},
    "shared.doctor.probes": {"shared.doctor", "shared.observe", "shared.openim", "shared.redis"},
    "shared.cli": {
        *("openim_presence", "shared.doctor", "shared.doctor.probes", "shared.why"),
        *("shared.gateways", "shared.logs", "shared.redis", "shared.observe"),
        *("shared.openim", "shared.truth"),
    },
    "receiver.journal": {"shared.logs"},
    "receiver.relay": {"receiver.journal", "shared.logs", "shared.redis"},
    "receiver.forward": {"receiver", "receiver.http", "shared.logs"},
    "receiver.http": {"receiver", "receiver.journal", "receiver.forward", "shared.logs"},
    "receiver.page": {
        *("receiver", "receiver.http"),
        *("shared.doctor", "shared.observe", "shared.redis", "shared.why"),
    },
    "receiver": {
        *("receiver.http", "receiver.journal", "receiver.relay", "receiver.forward", "receiver.page"),
        *("shared.logs", "shared.redis", "shared.observe"),
    },
    "worker.store": {"openim_presence", "shared.logs", "shared.redis", "shared.observe"},
    "worker.reconcile": {
        *("openim_presence", "shared.gateways", "shared.logs", "shared.openim", "shared.redis", "shared.truth"),
    },
    "worker.sweep": {"openim_presence", "worker.store", "shared.logs", "shared.redis"},
    "worker": {
        *("openim_presence", "worker.reconcile", "worker.store", "worker.sweep"),
        *("shared.gateways", "shared.logs", "shared.redis", "shared.observe"),
    },
}

#: The other modules of these rooms ask Redis and OpenIM.
PURE_OF_WHY = ("judgement", "facts", "words", "reasons", "against", "truth", "notes", "answer")

#: What some modules must not import, so that they can be tested without the world outside.
FORBIDDEN = [
    ("receiver/callback.py", {"aiohttp", "redis", "rq", "os", "time"}),
    ("receiver/page/guard.py", {"aiohttp", "asyncio", "os", "time"}),
    ("receiver/journal/*.py", {"aiohttp", "redis", "rq"}),
    ("worker/**/*.py", {"aiohttp"}),
    ("shared/gateways/*.py", {"redis", "rq", "os", "time"}),
    *((f"shared/why/{name}.py", {"redis", "rq", "os", "time"}) for name in PURE_OF_WHY),
    ("worker/reconcile/triggers.py", {"asyncio", "redis", "rq", "time"}),
    ("shared/memory.py", {"redis", "rq", "os", "time"}),
    ("shared/openim/*.py", {"redis", "rq"}),
    ("shared/openim/answers.py", {"aiohttp", "asyncio", "time"}),
    *(
        (f"shared/truth/{name}.py", {"aiohttp", "asyncio", "redis", "rq", "time"})
        for name in ("ours", "reach", "verdict")
    ),
    ("shared/doctor/*.py", {"aiohttp", "redis", "rq", "os", "time", "socket", "pathlib"}),
]


#: They are parsed while tests are collected. Later a thread that some test has left may log a traceback, for which
#: Python parses as well: two at a time fail in Python 3.11 ("AST constructor recursion depth mismatch").
TREES = {path: ast.parse(path.read_text()) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}


def imports(path: Path) -> Iterator[str]:
    """The dotted names of all modules that it imports, and of what it imports from them."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def room(name: str) -> str:
    """The folder that a dotted name leads to; "" if it is not ours."""
    parts = name.split(".")
    rooms = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
    return next((each for each in rooms if each in ROOMS), "")


def packages(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


def test_each_folder_is_a_room_that_says_what_it_is_for() -> None:
    paths = [path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    folders = {path.parent for path in paths if "build" not in path.parts}  # pip leaves that beside the reader
    assert {".".join(folder.parts) for folder in folders} == set(ROOMS)
    for folder in folders:
        assert ast.get_docstring(TREES[ROOT / folder / "__init__.py"]), folder


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_knows_only_those_it_may(name: str) -> None:
    known = ROOMS[name] | {name, ""} | ({"shared"} if name != "openim_presence" else set())
    for path in (ROOT / name.replace(".", "/")).glob("*.py"):
        assert {room(each) for each in imports(path)} <= known, path


def test_whether_it_is_a_cluster_is_decided_in_one_place() -> None:
    """`connect` chooses, and everything else asks the client, except its own room and tests."""
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            if path.parent != ROOT / "shared" / "redis":
                assert "shared.redis.cluster.Cluster" not in imports(path), path


def test_the_reader_needs_redis_py_and_nothing_else() -> None:
    for path in (ROOT / "openim_presence").glob("*.py"):
        assert packages(path) <= {"openim_presence", "redis"} | sys.stdlib_module_names, path


@pytest.mark.parametrize(("files", "forbidden"), FORBIDDEN)
def test_nothing_imports_what_it_must_not_know(files: str, forbidden: set[str]) -> None:
    paths = list(ROOT.glob(files))
    assert paths
    for path in paths:
        assert not packages(path) & forbidden, path
