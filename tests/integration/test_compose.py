"""The container files. No Docker is needed: the commands that they name run here, as processes."""

import json
import os
import random
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from socket import socket
from typing import Any
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

import pytest
import yaml
from redis import Redis
from redis.exceptions import RedisError

from receiver.__main__ import COPY_SECONDS, HAND_OVER_SECONDS
from receiver.http.server import ANSWER_SECONDS, LINGER_SECONDS
from shared.cli.embedded import find_server
from shared.settings import PREFIX, load

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
OURS = ("receiver", "worker")
#: The services that run by default.
CORE = {name: service for name, service in SERVICES.items() if "profiles" not in service}
#: How long a test waits for anything; it takes a second or two.
PATIENCE_SECONDS = 30.0


def _interpolated(value: object) -> str:
    """A value as Compose reads it with an empty environment: `${NAME:-default}` is the default."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(value))


def _environment(service: str) -> dict[str, str]:
    return {name: _interpolated(value) for name, value in SERVICES[service]["environment"].items()}


def _seconds(duration: str) -> float:
    return float(duration.removesuffix("s"))


# What the files say


def test_the_three_services_come_back_after_a_crash() -> None:
    assert set(CORE) == {"receiver", "worker", "redis"}
    assert {service["restart"] for service in SERVICES.values()} == {"unless-stopped"}
    assert "version" not in COMPOSE  # obsolete: Compose warns of it


def test_only_the_callback_port_is_open_to_other_machines() -> None:
    callbacks, page = SERVICES["receiver"]["ports"]
    assert {key: _interpolated(value) for key, value in callbacks.items()} == {
        "target": "10006",
        "published": "10006",
        "host_ip": "0.0.0.0",
    }
    others = [page, *(port for name, each in SERVICES.items() if name != "receiver" for port in each.get("ports", ()))]
    assert len(others) == 5
    assert all(_interpolated(port).startswith("127.0.0.1:") for port in others)
    assert "127.0.0.1:6379:6379" in map(_interpolated, others)


def test_what_observes_is_a_profile_and_finds_its_files() -> None:
    observers = {name: service for name, service in SERVICES.items() if service.get("profiles") == ["observe"]}
    assert set(observers) == {"prometheus", "grafana", "rq-dashboard"} == set(SERVICES) - set(CORE)
    mounts = [volume.split(":")[0] for service in observers.values() for volume in service.get("volumes", ())]
    files = [mount for mount in mounts if mount.startswith("./")]
    assert len(files) == 5
    assert all((ROOT / file).is_file() for file in files)


@pytest.mark.parametrize(("name", "setting"), [("receiver", "admin_port"), ("worker", "worker_admin_port")])
def test_prometheus_asks_where_the_pages_are(name: str, setting: str) -> None:
    configuration = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text("utf-8"))
    (job,) = [each for each in configuration["scrape_configs"] if each["job_name"] == f"presence-{name}"]
    (found,) = job["dns_sd_configs"]
    settings = load(_environment(name))
    assert (found["names"], found["port"]) == ([name], getattr(settings, setting))
    assert settings.admin_host == "0.0.0.0"


def test_several_workers_can_run() -> None:
    assert not {"ports", "container_name", "hostname"} & set(SERVICES["worker"])


def test_what_openim_is_told_is_what_the_page_says() -> None:
    """OpenIM names a variable by its file and the key in it (`env.go` and `load_config.go` in `pkg/common/config`)."""
    project = yaml.safe_load((ROOT / "deploy" / "openim" / "docker-compose.override.yaml").read_text("utf-8"))
    row = next(
        line
        for line in (ROOT / "docs" / "connect.md").read_text("utf-8").splitlines()
        if "`config/webhooks.yml`" in line
    )
    (url,) = re.findall(r"url: (\S+)`", row)
    enabled = {f"IMENV_WEBHOOKS_{name.upper()}_ENABLE=true" for name in re.findall(r"`(afterUser\w+)`", row)}
    assert len(enabled) == 3
    given = set(project["services"]["openim-server"]["environment"])
    assert given == {f"IMENV_WEBHOOKS_URL={url.replace('HOST', 'presence-receiver')}"} | enabled


@pytest.mark.parametrize("name", OURS)
def test_our_programs_have_no_privilege_and_write_to_the_journal_and_tmp_alone(name: str) -> None:
    service = SERVICES[name]
    assert (service["read_only"], service["tmpfs"], service["cap_drop"]) == (True, ["/tmp"], ["ALL"])  # noqa: S108
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {volume.partition(":")[0] for volume in service.get("volumes", ())} <= {"journal"}


def test_how_many_workers_run_survives_the_next_up() -> None:
    assert SERVICES["worker"]["deploy"] == {"replicas": "${PRESENCE_WORKERS:-1}"}
    assert "#PRESENCE_WORKERS=1\n" in (ROOT / ".env.example").read_text("utf-8")


@pytest.mark.parametrize("value", ["openim:pa$$ #1", "openim:a$HOME`x`", 'openim:"x" \\n', "openim:用户 # $(y)"])
def test_a_value_in_single_quotes_means_in_a_shell_what_it_says(tmp_path: Path, value: str) -> None:
    (tmp_path / ".env").write_text(f"PRESENCE_BASIC_AUTH='{value}'\n")
    command = f"set -a; . ./.env; exec {sys.executable} -c 'from shared.settings import load; print(load().basic_auth)'"
    environment = {name: each for name, each in os.environ.items() if not name.startswith(PREFIX)}
    ran = subprocess.run(
        ["sh", "-c", command],
        cwd=tmp_path,
        env=environment | {"PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == f"{value}\n"


def test_both_programs_use_the_image_that_is_named_or_build_one_without_racing_for_its_name() -> None:
    for name in OURS:
        assert SERVICES[name]["build"] == "."
        assert SERVICES[name]["image"] == "${PRESENCE_IMAGE:-}"


def test_no_service_waits_for_redis_to_be_healthy() -> None:
    for name in OURS:
        assert SERVICES[name]["depends_on"] == {"redis": {"condition": "service_started"}}


@pytest.mark.parametrize("name", OURS)
def test_the_settings_are_valid_and_lead_to_the_redis_service(name: str) -> None:
    settings = load(_environment(name))
    assert settings.redis_url == settings.queue_url == "redis://redis:6379/0"
    assert SERVICES[name]["env_file"] == [{"path": ".env", "required": False}]


@pytest.mark.parametrize("name", OURS)
def test_the_url_of_redis_may_be_a_secret(name: str, tmp_path: Path) -> None:
    more = yaml.safe_load((ROOT / "deploy" / "redis-secret.yml").read_text("utf-8"))
    (secret,) = more["services"][name]["secrets"]
    assert list(more["secrets"]) == [secret]
    environment = _environment(name) | more["services"][name]["environment"]  # as Compose merges them
    assert environment["PRESENCE_REDIS_URL_FILE"] == f"/run/secrets/{secret}"
    (tmp_path / secret).write_text("redis://:geheim@elsewhere:6379/0\n")
    settings = load(environment | {"PRESENCE_REDIS_URL_FILE": str(tmp_path / secret)})
    assert settings.redis_url == settings.queue_url == "redis://:geheim@elsewhere:6379/0"


def test_the_journal_is_on_a_volume_that_the_image_lets_the_user_write_to() -> None:
    journal = load(_environment("receiver")).journal_dir
    assert SERVICES["receiver"]["volumes"] == [f"journal:{journal}"]
    assert f"PRESENCE_JOURNAL_DIR={journal}\n" in DOCKERFILE
    assert re.search(rf"^RUN install --directory --owner=10006 .*{journal}$", DOCKERFILE, re.MULTILINE)
    assert re.search(r"^USER 10006\b", DOCKERFILE, re.MULTILINE)


def test_every_volume_is_declared() -> None:
    used = {volume.partition(":")[0] for each in SERVICES.values() for volume in each.get("volumes", ())}
    assert {volume for volume in used if not volume.startswith("./")} == set(COMPOSE["volumes"])


def test_the_receiver_is_given_the_time_that_it_needs_to_stop() -> None:
    # The relay's thread may overrun by almost one second.
    needed = LINGER_SECONDS + ANSWER_SECONDS + COPY_SECONDS + HAND_OVER_SECONDS + 1
    assert _seconds(SERVICES["receiver"]["stop_grace_period"]) > needed


def test_the_image_starts_the_receiver() -> None:
    assert f"CMD {json.dumps(SERVICES['receiver']['command'])}\n" in DOCKERFILE
    assert f"EXPOSE {load(_environment('receiver')).port}\n" in DOCKERFILE


def test_the_build_sees_what_pip_reads_and_nothing_else() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    packages = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    needed = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"], *packages}
    patterns = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert "*" in patterns
    assert {pattern[1:] for pattern in patterns if pattern.startswith("!")} == needed


# What the commands do


class Stack:
    """The three services' own commands, here: other ports, other directories, otherwise the same."""

    def __init__(self, directory: Path, processes: ExitStack) -> None:
        self.redis_port, self.port, self.admin_port, self.worker_admin_port = _free_ports(4)
        self._directory = directory
        self._processes = processes

    def start(self, service: str) -> None:
        home = self._directory / service
        home.mkdir()
        command = self._here(SERVICES[service]["command"])
        if service == "redis":
            command += ["--port", str(self.redis_port), "--bind", "127.0.0.1"]
        with (home / "log").open("wb") as log:
            # Not in the source tree: the installed packages must run, and not the sources beside them.
            process = subprocess.Popen(
                command, cwd=home, env=self._environment(service), stdout=log, stderr=subprocess.STDOUT
            )
        self._processes.callback(_kill, process)

    def is_healthy(self, service: str) -> bool:
        try:
            return self.health(service).returncode == 0
        except subprocess.TimeoutExpired:
            return False

    def health(self, service: str) -> "subprocess.CompletedProcess[str]":
        """What Docker's health check would find."""
        kind, *command = SERVICES[service]["healthcheck"]["test"]
        assert kind == "CMD"
        if service == "redis":
            command[1:1] = ["-p", str(self.redis_port)]
        return subprocess.run(
            self._here(command),
            env=self._environment(service),
            timeout=_seconds(SERVICES[service]["healthcheck"]["timeout"]),
            capture_output=True,
            text=True,
            check=False,
        )

    def wait_for(self, what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                logs = (f"{log}:\n{log.read_text()}" for log in self._directory.glob("*/log"))
                pytest.fail("\n".join((f"waited in vain: {what}", *logs)))
            time.sleep(0.05)

    def post(self, user_id: str) -> dict[str, Any]:
        name = "callbackAfterUserOfflineCommand"
        body = {"userID": user_id, "callbackCommand": name, "seq": 1, "connID": "", "platformID": 1}
        request = Request(
            f"http://127.0.0.1:{self.port}/{name}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "operationID": "x"},
        )
        with build_opener(ProxyHandler({})).open(request, timeout=5) as response:
            answer: dict[str, Any] = json.load(response)
            return answer

    def status(self, user_id: str) -> str | None:
        with Redis(port=self.redis_port, decode_responses=True) as redis:
            try:
                status: str | None = redis.hget(f"presence:{user_id}", "status")
            except RedisError:
                return None
            return status

    def _here(self, command: list[str]) -> list[str]:
        server = find_server()
        client = server.with_name(server.name.replace("server", "cli"))
        programs = {"python": sys.executable, "valkey-server": str(server), "valkey-cli": str(client)}
        return [programs[command[0]], *command[1:]]

    def _environment(self, service: str) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        if service not in OURS:
            return inherited
        given = _environment(service)
        url = urlsplit(given["PRESENCE_REDIS_URL"])
        given["PRESENCE_REDIS_URL"] = url._replace(netloc=f"127.0.0.1:{self.redis_port}").geturl()
        given["PRESENCE_ADMIN_HOST"] = "127.0.0.1"
        if service == "worker":
            given["PRESENCE_WORKER_ADMIN_PORT"] = str(self.worker_admin_port)
        if service == "receiver":
            given |= {
                "PRESENCE_HOST": "127.0.0.1",
                "PRESENCE_PORT": str(self.port),
                "PRESENCE_ADMIN_PORT": str(self.admin_port),
                "PRESENCE_JOURNAL_DIR": str(self._directory / "journal"),
            }
        return inherited | given


def _free_ports(count: int) -> set[int]:
    """Ports below those that the kernel gives to clients, so that no connection takes one before its server does."""
    ports: set[int] = set()
    while len(ports) < count:
        port = random.randrange(20_000, 32_000)
        with suppress(OSError), socket() as probe:
            probe.bind(("127.0.0.1", port))
            ports.add(port)
    return ports


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with ExitStack() as processes:
        yield Stack(tmp_path, processes)


def test_a_callback_reaches_redis(stack: Stack) -> None:
    for service in ("redis", "receiver", "worker"):
        stack.start(service)
    for service in OURS:
        stack.wait_for(f"a healthy {service}", lambda name=service: stack.is_healthy(name))
    assert stack.post("u1")["actionCode"] == 0
    stack.wait_for("u1 offline in Redis", lambda: stack.status("u1") == "offline")


def test_redis_may_be_the_last_to_start(stack: Stack) -> None:
    for service in OURS:
        stack.start(service)
    stack.wait_for("a healthy receiver", lambda: stack.is_healthy("receiver"))
    assert stack.post("u1")["actionCode"] == 0
    stack.start("redis")
    stack.wait_for("u1 offline in Redis", lambda: stack.status("u1") == "offline")


def test_a_receiver_that_can_take_no_events_is_not_healthy(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "journal").write_text("in the way")
    stack.start("receiver")
    stack.wait_for("its word for it", lambda: "cannot be written" in stack.health("receiver").stderr)
    (tmp_path / "journal").unlink()
    stack.wait_for("a healthy receiver", lambda: stack.is_healthy("receiver"))


@pytest.mark.parametrize("service", CORE)
def test_what_is_not_there_is_not_healthy(stack: Stack, service: str) -> None:
    assert not stack.is_healthy(service)


def test_redis_keeps_what_it_has_on_disk_and_evicts_nothing(stack: Stack) -> None:
    stack.start("redis")
    stack.wait_for("a healthy Redis", lambda: stack.is_healthy("redis"))
    with Redis(port=stack.redis_port, decode_responses=True) as redis:
        settings = redis.config_get("appendonly", "appendfsync", "maxmemory-policy", "save")
    assert settings == {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
        "save": "",
    }
