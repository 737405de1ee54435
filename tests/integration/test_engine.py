"""The Compose project on a real container engine: built, started, killed, stopped, and started again.

The plain run leaves it out, since it would give an engine two minutes of work: `pytest -m engine -n 0`. It needs Docker
with Compose 2.24, and an engine whose published ports are on this machine's loopback.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import pytest
import yaml
from redis import Redis
from redis.exceptions import RedisError
from support import free_port

from shared.settings import PREFIX

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[2]
#: What the build reads and what the Compose file mounts.
PROJECT = (
    *("Dockerfile", "docker-compose.yml", ".dockerignore", "LICENSE", "README.md", "pyproject.toml"),
    *("openim_presence", "receiver", "shared", "worker", "deploy"),
)
WORKERS = 3
PROCESSES = 2
CREDENTIALS = "openim:pa$$ #1"
AUTHORIZATION = {"Authorization": f"Basic {b64encode(CREDENTIALS.encode()).decode()}"}
#: How long a test waits for anything; mostly that is the next health check, once in 15 s.
PATIENCE_SECONDS = 60.0
#: What docker-compose.yml gives receivers and workers.
GRACE_SECONDS = 15.0


def why_not() -> str:
    """Why no engine can be used here; "" if one can."""
    if not shutil.which("docker"):
        return "there is no docker command"
    for command in (["docker", "info"], ["docker", "compose", "version"]):
        try:
            ran = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        except subprocess.TimeoutExpired:
            return f"{' '.join(command)} does not answer"
        if ran.returncode:
            return f"{' '.join(command)} fails: {ran.stderr.strip()[-200:]}"
    return ""


def answer(request: Request) -> int:
    """The status."""
    try:
        with build_opener(ProxyHandler({})).open(request, timeout=5) as response:
            status: int = response.status
            return status
    except HTTPError as error:
        return error.code


class Compose:
    """A Compose project in a directory."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory
        self.name = name
        # Compose puts the caller's variables above those of .env.
        ours = (PREFIX, "REDIS_", "COMPOSE_", "OPENIM_")
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}

    def compose(self, *arguments: str, timeout: float = 90) -> str:
        """Runs it. What it prints; if it fails, the test fails."""
        ran = self.run(["docker", "compose", "-p", self.name, *arguments], timeout)
        if ran.returncode:
            pytest.fail(f"docker compose {' '.join(arguments)}: {ran.stdout[-2000:]}{ran.stderr[-2000:]}")
        return ran.stdout.strip()

    def inside(self, service: str, *command: str) -> str:
        return self.compose("exec", "-T", service, *command)

    def remove(self) -> None:
        arguments = ["down", "-v", "--rmi", "local", "--remove-orphans", "--timeout", "5"]
        self.run(["docker", "compose", "-p", self.name, *arguments], 90)

    def run(self, command: list[str], timeout: float) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command,
            cwd=self.directory,
            env=self._environment,
            timeout=timeout,
            capture_output=True,
            text=True,
            check=False,
        )


class Project(Compose):
    """A copy of what the project ships, with an .env, under a name and on ports of its own."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, f"presence-test-{random.randrange(16**6):06x}")
        self._redis_port = free_port()
        self._settings = {
            "PRESENCE_HOST": "127.0.0.1",
            "PRESENCE_PORT": str(free_port()),
            "PRESENCE_BASIC_AUTH": f"'{CREDENTIALS}'",
            "PRESENCE_ADMIN_PORT": str(free_port()),
            "PRESENCE_ADMIN_AUTH": f"'{CREDENTIALS}'",
            "PRESENCE_PROCESSES": str(PROCESSES),
            "PRESENCE_WORKERS": str(WORKERS),
            "REDIS_PORT": str(self._redis_port),
        }
        for name in PROJECT:
            source = ROOT / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, directory / name)
        self.configure()

    def configure(self, **settings: str) -> None:
        self._settings |= settings
        (self.directory / ".env").write_text("".join(f"{name}={value}\n" for name, value in self._settings.items()))

    def up(self) -> None:
        """Starts it, and waits until it takes callbacks."""
        self.compose("up", "-d", "--quiet-pull")
        self.wait_for("a receiver that accepts", lambda: self.send("somebody"))

    def send(self, user: str) -> bool:
        """Sends from this machine that the user is online. Whether that was accepted."""
        name = "callbackAfterUserOnlineCommand"
        body = {
            "userID": user,
            "callbackCommand": name,
            "seq": time.time_ns() // 1_000_000,
            "platformID": 1,
            "connID": "",
        }
        headers = {"Content-Type": "application/json", "operationID": "op"}
        if self._settings["PRESENCE_BASIC_AUTH"]:
            headers |= AUTHORIZATION
        url = f"http://127.0.0.1:{self._settings['PRESENCE_PORT']}/callbackExample/{name}"
        with suppress(OSError):
            return answer(Request(url, json.dumps(body).encode(), headers)) == 200
        return False

    def page(self, headers: dict[str, str]) -> int:
        """What /api/status on the receiver's admin port answers this machine."""
        return answer(Request(f"http://127.0.0.1:{self._settings['PRESENCE_ADMIN_PORT']}/api/status", headers=headers))

    def shell(self, command: str) -> "subprocess.CompletedProcess[str]":
        """Runs a command in a shell on this machine that has read .env, as .env.example shows."""
        return self.run(["sh", "-c", f"set -a; . ./.env; {command}"], 20)

    def status(self, user: str) -> str | None:
        """A user's status, read from this machine as other services do; None also if Redis does not answer."""
        with suppress(RedisError), Redis(port=self._redis_port, decode_responses=True, socket_timeout=5) as redis:
            status: str | None = redis.hget(f"presence:{user}", "status")
            return status
        return None

    def containers(self, service: str) -> set[str]:
        """The ids of the running containers."""
        return set(self.compose("ps", "-q", service).split())

    def every(self, template: str) -> list[str]:
        """One field of each container, also of those that ended."""
        return self.compose("ps", "-a", "--format", template).splitlines()

    def inspect(self, what: str, template: str) -> str:
        """One field of a container or a network."""
        return self.run(["docker", "inspect", "-f", template, what], 20).stdout.strip()

    def gateway(self) -> str:
        return self.inspect(f"{self.name}_default", "{{(index .IPAM.Config 0).Gateway}}")

    def crash(self, container: str) -> None:
        """Kills from within all but the first process, which is Docker's init. No command of Docker does that."""
        self.run(["docker", "exec", container, "sh", "-c", "kill -9 -1"], 20)

    def wait_for(self, what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                logs = self.compose("logs", "--no-color", "--tail", "20")
                pytest.fail(f"waited in vain: {what}\n{logs}")
            time.sleep(0.2)

    def wait_for_status(self, user: str, status: str) -> None:
        self.wait_for(f"{user} {status}", lambda: self.status(user) == status)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    if reason := why_not():
        pytest.skip(reason)
    project = Project(tmp_path_factory.mktemp("project"))
    try:
        project.compose("build", "--quiet", timeout=240)
        project.up()
        yield project
    finally:
        project.remove()


@pytest.fixture
def project(running: Project) -> Project:
    """The project as `up -d` leaves it, whatever the previous test did to it."""
    running.up()
    return running


def test_all_services_become_healthy_and_the_receiver_has_its_processes(project: Project) -> None:
    healthy = ["healthy"] * (1 + WORKERS + 1)
    project.wait_for("all healthy", lambda: project.every("{{.Health}}") == healthy)
    status = json.loads(project.inside("receiver", "presence", "status", "--json"))
    assert status["healthy"]
    assert len(status["workers"]) == WORKERS
    assert len(status["receivers"]) == PROCESSES


def test_an_event_from_this_machine_becomes_presence_that_this_machine_reads(project: Project) -> None:
    assert project.send("alice")
    project.wait_for_status("alice", "online")
    assert project.inside("receiver", "presence", "get", "alice").split()[:2] == ["alice", "online"]


def test_the_page_wants_credentials_of_this_machine(project: Project) -> None:
    assert project.page({}) == 401
    assert project.page(AUTHORIZATION) == 200


def test_compose_reads_a_value_in_single_quotes_as_it_stands(project: Project) -> None:
    assert project.inside("receiver", "printenv", "PRESENCE_BASIC_AUTH") == CREDENTIALS
    presence = Path(sys.executable).with_name("presence")
    assert project.shell(f"{presence} send").returncode == 0
    assert "1 x 401" in project.shell(f"PRESENCE_BASIC_AUTH=openim:wrong {presence} send --event online").stdout


@pytest.mark.parametrize("service", ["receiver", "worker"])
def test_a_program_has_no_privilege_and_writes_nowhere_but_to_its_volume(project: Project, service: str) -> None:
    assert project.inside(service, "id", "-u") == "10006"
    status = project.inside(service, "cat", "/proc/1/status")
    assert "CapBnd:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    assert project.inside(service, "sh", "-c", "touch /venv/x 2>&1 || true").endswith("Read-only file system")


def test_a_plain_up_keeps_the_workers(project: Project) -> None:
    before = project.containers("worker")
    assert len(before) == WORKERS
    project.up()
    assert project.containers("worker") == before


def test_scale_lasts_until_the_next_up(project: Project) -> None:
    project.compose("up", "-d", "--scale", "worker=1")
    assert len(project.containers("worker")) == 1
    project.up()
    assert len(project.containers("worker")) == WORKERS


def test_all_that_crash_come_back(project: Project) -> None:
    crashed = project.containers("worker") | project.containers("receiver")
    for container in crashed:
        project.crash(container)
    state = "{{.RestartCount}} {{.State.Running}}"
    project.wait_for("each up again", lambda: {project.inspect(each, state) for each in crashed} == {"1 true"})
    project.wait_for("a receiver that accepts", lambda: project.send("after-crash"))
    project.wait_for_status("after-crash", "online")


def test_what_is_killed_by_command_stays_down_until_the_next_up(project: Project) -> None:
    project.compose("kill", "worker")
    assert project.send("without-workers")
    time.sleep(3)  # a restart would come within a second
    assert not project.containers("worker")
    assert project.status("without-workers") is None
    project.up()
    project.wait_for_status("without-workers", "online")


def test_killed_redis_costs_no_event(project: Project) -> None:
    users = [f"before{number}" for number in range(5)]
    assert all(map(project.send, users))
    project.compose("kill", "redis")
    assert project.send("meanwhile")
    project.compose("start", "redis")
    for user in (*users, "meanwhile"):
        project.wait_for_status(user, "online")


def test_down_keeps_what_redis_and_the_journal_have(project: Project) -> None:
    assert project.send("kept")
    project.wait_for_status("kept", "online")
    project.compose("kill", "redis")
    assert project.send("in-the-journal")
    project.compose("kill", "receiver")
    project.compose("down")
    project.up()
    project.wait_for_status("in-the-journal", "online")
    assert project.status("kept") == "online"


def test_all_stop_in_time_and_say_that_all_is_well(project: Project) -> None:
    began = time.monotonic()
    project.compose("stop")
    assert time.monotonic() - began < GRACE_SECONDS
    assert project.every("{{.ExitCode}}") == ["0"] * (1 + WORKERS + 1)


def test_allowed_networks_see_this_machine_as_the_gateway_and_a_container_as_itself(project: Project) -> None:
    """What docs/access.md says about Docker's proxy."""
    project.configure(PRESENCE_ALLOWED_NETWORKS=project.gateway())
    try:
        project.up()
        send = "presence send --event online --url http://receiver:10006/callbackExample || true"
        assert "1 x 403" in project.inside("worker", "sh", "-c", send)
    finally:
        project.configure(PRESENCE_ALLOWED_NETWORKS="")


@pytest.fixture
def openim(project: Project, tmp_path: Path) -> Iterator[Compose]:
    """Stands in for OpenIM: its network, a Redis with the same name as ours, and a container that knows our URL."""
    shutil.copy(ROOT / "deploy" / "openim" / "docker-compose.override.yaml", tmp_path)
    server = {
        "image": f"{project.name}-receiver",
        "command": ["sleep", "infinity"],
        "init": True,
        "networks": ["openim"],
    }
    redis = {
        "image": "valkey/valkey:8-alpine",
        "command": ["valkey-server", "--requirepass", "x"],
        "networks": ["openim"],
    }
    services = {"openim-server": server, "redis": redis}
    (tmp_path / "docker-compose.yaml").write_text(yaml.safe_dump({"services": services, "networks": {"openim": {}}}))
    openim = Compose(tmp_path, f"{project.name}-openim")
    openim.compose("up", "-d")
    try:
        yield openim
    finally:
        project.configure(COMPOSE_FILE="docker-compose.yml", PRESENCE_BASIC_AUTH=f"'{CREDENTIALS}'")
        project.up()  # so that nobody is on its network
        openim.run(["docker", "compose", "-p", openim.name, "down", "--timeout", "1"], 30)


def test_openim_in_a_compose_project_of_its_own_reaches_the_receiver_and_each_keeps_its_redis(
    project: Project, openim: Compose
) -> None:
    files = "docker-compose.yml:deploy/openim/presence.yml"
    project.configure(COMPOSE_FILE=files, OPENIM_NETWORK=f"{openim.name}_openim", PRESENCE_BASIC_AUTH="")
    project.up()
    url = openim.inside("openim-server", "printenv", "IMENV_WEBHOOKS_URL")
    openim.inside("openim-server", "presence", "send", "--event", "online", "--user", "carol", "--url", url)
    project.wait_for_status("carol", "online")
    assert openim.inside("redis", "valkey-cli", "--no-auth-warning", "-a", "x", "dbsize") == "0"
