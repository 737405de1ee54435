"""The reader as a distribution of its own: what it brings along, and what it leaves alone."""

import json
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from support import ROOT, Server, on_one_server

pytestmark = pytest.mark.xdist_group("reader alone")  # they share what takes long to start
BUILT_FROM = ("pyproject.toml", "README.md", "LICENSE", "examples", "openim_presence", "receiver", "shared", "worker")
LEFT_OVERS = ("__pycache__", "build", "*.egg-info")

# A service that has packages of its own with the servers' names.
SERVICE = {
    "shared/__init__.py": "",
    "shared/mine.py": 'USERS = ["alice", "bob"]\n',
    "worker.py": 'WHO = "the service\'s own worker"\n',
    "service.py": """
import asyncio
import sys
from typing import assert_type

import redis.asyncio
from redis import Redis

import openim_presence
import worker
from openim_presence import AsyncConsumerGroup, AsyncFeed, Change, ConsumerGroup, Feed, Missed
from shared.mine import USERS


def read(client: Redis) -> None:
    print(worker.WHO, openim_presence.users_online(client))
    for user in openim_presence.read(client, USERS):
        assert_type(user.platforms, tuple[int, ...])
        print(user.user_id, user.status, user.platforms)
    print([user.user_id for user in openim_presence.read_all(client, prefix="presence")])
    print(follow(Feed(client, after="0")), follow(ConsumerGroup(client, "mine", "mine-1")))


def follow(changes: Feed | ConsumerGroup) -> list[str]:
    try:
        found = changes.poll(0.01)
    except Missed as missed:
        return [missed.last_id]
    if isinstance(changes, ConsumerGroup):
        changes.ack(found)
    return [change.user_id for change in found]


async def read_async(client: redis.asyncio.Redis) -> None:
    async for user in openim_presence.read_async(client, USERS):
        print(user.user_id, user.status)
    async for user in openim_presence.read_all_async(client):
        print(user.user_id)
    assert_type(await openim_presence.users_online_async(client), int)
    assert_type(await AsyncFeed(client).poll(0.01), list[Change])
    try:
        await AsyncConsumerGroup(client, "theirs", "theirs-1").poll(0.01)
    except Missed:
        print("missed")
    await client.aclose()


read(Redis.from_url(sys.argv[1]))
asyncio.run(read_async(redis.asyncio.Redis.from_url(sys.argv[1])))
""",
}
PRINTED = """\
the service's own worker 1
alice online (1, 5)
bob unknown ()
['alice']
['alice'] ['1-0']
alice online
bob unknown
alice
missed
"""


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Runs a command. What it prints; if it fails, the test fails with that."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both distributions by name, built from a copy, since building leaves files beside the sources."""
    copy = tmp_path_factory.mktemp("copy")
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns(*LEFT_OVERS))
        else:
            shutil.copy(ROOT / name, copy)
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--wheel-dir", copy / "dist", copy, copy / "openim_presence")
    return {path.name.partition("-")[0]: path for path in (copy / "dist").glob("*.whl")}


@pytest.fixture(scope="module")
def python(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment with only the reader."""
    venv = tmp_path_factory.mktemp("alone") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", venv)
    run(*pip, "install", "--no-compile", wheels["openim_presence"])
    return venv / "bin" / "python"


@pytest.fixture
def service(tmp_path: Path) -> Path:
    for name, text in SERVICE.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def content(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.partition("/")[0].endswith("-info")}


def test_both_distributions_contain_the_same_reader_and_the_readers_nothing_else(wheels: dict[str, Path]) -> None:
    assert set(wheels) == {"openim_presence", "openim_presence_server"}
    assert len({path.name.split("-")[1] for path in wheels.values()}) == 1  # the version
    alone, servers = content(wheels["openim_presence"]), content(wheels["openim_presence_server"])
    modules = {f"openim_presence/{path.name}" for path in (ROOT / "openim_presence").glob("*.py")}
    assert set(alone) == modules | {"openim_presence/py.typed"}
    assert alone == {name: text for name, text in servers.items() if name.startswith("openim_presence/")}
    assert {name.partition("/")[0] for name in servers} == {"openim_presence", "receiver", "shared", "worker"}


def test_the_reader_takes_the_same_redis_py_as_the_servers() -> None:
    alone, servers = (
        {line.partition(">")[0].partition("[")[0]: line.partition(">")[2] for line in project["dependencies"]}
        for project in (project_of(ROOT / "openim_presence"), project_of(ROOT))
    )
    assert alone == {"redis": servers["redis"]}


def project_of(directory: Path) -> dict[str, Any]:
    with (directory / "pyproject.toml").open("rb") as file:
        return dict(tomllib.load(file)["project"])


def test_it_drags_in_redis_py_and_nothing_else(python: Path) -> None:
    listed = json.loads(run(sys.executable, "-m", "pip", "--python", python, "list", "--format", "json"))
    needed_by_redis_py = {"async-timeout"}  # on Python before 3.11.3
    assert {each["name"] for each in listed} - needed_by_redis_py == {"openim-presence", "redis"}


@on_one_server
def test_a_service_with_a_shared_and_a_worker_of_its_own_reads_presence(
    python: Path, service: Path, server: Server, redis: Redis
) -> None:
    fields = {"status": "online", "seq": "1", "changed_at": "7", "updated_at": "8", "sessions": "2", "platforms": "1,5"}
    redis.hset("presence:alice", mapping=fields)
    redis.hset("presence-stats", "users_online", 1)
    redis.xadd("presence-changes", {"user_id": "alice", "status": "online"}, id="1-0")
    assert run(python, "service.py", server.url, cwd=service) == PRINTED


def test_it_is_typed_for_mypy_at_its_strictest(python: Path, service: Path, tmp_path: Path) -> None:
    mypy = (sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", tmp_path / "cache")
    run(*mypy, "--python-executable", python, "service.py", cwd=service)
