"""`presence up`: everything on this machine."""

import fcntl
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import click
from redis.exceptions import RedisError

from shared import settings
from shared.children import die_with_parent, ending
from shared.cli import embedded
from shared.cli.here import fetch, is_everywhere, is_loopback, listens, url_host
from shared.errors import PresenceError, SettingsError
from shared.logs import streams
from shared.redis.client import connect

READY_SECONDS = 20
STOP_SECONDS = 15
LONGEST_PAUSE_SECONDS = 10.0
#: What the commands in another terminal must know, where it is not the default: who sends, and who reads.
_SENDING = ("host", "port", "callback_path", "basic_auth", "tls_cert", "tls_key")
_READING = ("redis_url", "queue_url", "admin_host", "admin_port", "key_prefix")


@dataclass
class Service:
    """A child process that is started again when it ends."""

    name: str
    command: list[str]
    environment: dict[str, str]
    process: "subprocess.Popen[bytes] | None" = None
    failures: int = 0
    start_at: float = field(default=0.0)

    def start(self) -> None:
        # In a group of its own, so that Ctrl-C reaches us alone and we stop them in order.
        self.process = subprocess.Popen(  # noqa: S603  # our own commands
            self.command,
            env=self.environment,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509  # it makes one system call
        )

    def stop(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            click.echo(f"presence: {self.name} did not stop in {STOP_SECONDS} s and was killed", err=True)
            self.process.kill()
            self.process.wait()

    def keep_running(self) -> None:
        """Starts it again, after a pause that grows, when it has ended."""
        if self.process is None:
            if time.monotonic() >= self.start_at:
                self.start()
        elif (code := self.process.poll()) is not None:
            self.process = None
            pause = min(0.5 * 2 ** min(self.failures, 8), LONGEST_PAUSE_SECONDS)
            self.failures += 1
            self.start_at = time.monotonic() + pause
            click.echo(f"presence: {self.name} ended ({ending(code)}); it starts again in {pause:g} s", err=True)


@click.command()
def up() -> None:
    """Runs everything on this machine: a server with its data in ./data, a receiver, a worker."""
    streams.take_over()
    data = Path("data").absolute()
    given = {name: value for name, value in os.environ.items() if value}  # an empty variable is not set
    environment = {"PRESENCE_HOST": "127.0.0.1", "PRESENCE_JOURNAL_DIR": str(data / "journal"), **given}
    services: list[Service] = []
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stopping.set())
    with _only_one(data):
        try:
            if "PRESENCE_REDIS_URL" not in given:
                port = embedded.free_port(6379)
                environment["PRESENCE_REDIS_URL"] = f"redis://127.0.0.1:{port}/0"
                command = embedded.arguments(embedded.find_server(), port, data)
                _start(services, Service("server", command, environment), stopping, _answers(environment))
            config = settings.load(environment)
            _check_servers(config, own="PRESENCE_REDIS_URL" not in given)
            receiver = Service("receiver", [sys.executable, "-m", "receiver"], environment)
            _start(services, receiver, stopping, _receives(config, receiver))
            worker = Service("worker", [sys.executable, "-m", "worker"], environment)
            _start(services, worker, stopping, lambda: True)
            if not stopping.is_set():
                click.echo(_how_to(config))
            while not stopping.wait(0.2):
                for service in services:
                    service.keep_running()
        finally:
            for service in sorted(services, key=lambda each: each.name == "server"):
                service.stop()
    click.echo("presence: stopped; what was accepted is in ./data")


@contextmanager
def _only_one(data: Path) -> Iterator[None]:
    """Holds the data directory: two servers on one append-only file would ruin it. Raises SettingsError."""
    data.mkdir(parents=True, exist_ok=True)
    with (data / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SettingsError("another `presence up` is running in this directory") from None
        yield


def _start(services: list[Service], service: Service, stopping: threading.Event, is_ready: Callable[[], bool]) -> None:
    """Starts it for the first time, waits until it is ready. Raises PresenceError where it ends instead."""
    services.append(service)
    service.start()
    give_up_at = time.monotonic() + READY_SECONDS
    while not stopping.wait(0.05):
        if service.process is None or service.process.poll() is not None:
            where = "data/server.log" if service.name == "server" else "the line above"
            raise PresenceError(f"the {service.name} did not start; see {where}")
        if is_ready():
            return
        if time.monotonic() > give_up_at:
            raise PresenceError(f"the {service.name} is not ready after {READY_SECONDS} s")


def _answers(environment: dict[str, str]) -> Callable[[], bool]:
    client = connect(environment["PRESENCE_REDIS_URL"])

    def is_ready() -> bool:
        with suppress(RedisError):
            return bool(client.ping())
        return False

    return is_ready


def _receives(config: settings.Settings, receiver: Service) -> Callable[[], bool]:
    """Asks the receiver itself where that is possible: on a port in use, somebody else would answer."""

    def is_ready() -> bool:
        if not config.admin_port:
            return listens(config, 1)
        with suppress(OSError, ValueError, KeyError, TypeError):
            process = receiver.process
            return process is not None and fetch(config, "/healthz", 1)["pid"] == process.pid
        return False

    return is_ready


def _check_servers(config: settings.Settings, *, own: bool) -> None:
    """Raises PresenceError where a server that somebody else runs does not answer."""
    for variable, url in (("PRESENCE_REDIS_URL", config.redis_url), ("PRESENCE_QUEUE_URL", config.queue_url)):
        try:
            connect(url).ping()
        except RedisError as error:
            hint = "" if own else "; unset it to have a server started here, with its data in ./data"
            raise PresenceError(f"{variable}: {settings.without_password(url)}: {error}{hint}") from None


def _how_to(config: settings.Settings) -> str:
    host = "HOST" if is_everywhere(config.host) else url_host(config.host)
    scheme = "https" if config.tls_cert else "http"
    credentials = "USER:PASSWORD@" if config.basic_auth else ""  # PRESENCE_BASIC_AUTH has them, our output does not
    url = f"{scheme}://{credentials}{host}:{config.port}{config.callback_path}"
    redis = settings.without_password(config.redis_url)
    others = "other machines too"
    reach = "this machine only (PRESENCE_HOST=0.0.0.0 for others)" if is_loopback(config.host) else others
    program = sys.argv[0] if os.sep in sys.argv[0] else "presence"
    send, read = _told(config, _SENDING) + program, _told(config, _READING) + program
    return f"""
presence is up; Ctrl-C stops it. It takes callbacks at {url} from {reach};
presence is in {redis}.

In OpenIM's config/webhooks.yml (3.7 and later; the README has the others) change these, and restart OpenIM:
  url: {url}/callbackExample
  afterUserOnline: {{enable: true, timeout: 5}}      # and afterUserOffline, afterUserKickOff

See it work, in another terminal:
  {send} send --user alice --event online
  {read} get alice
  {read} watch
  {read} status
"""


def _told(config: settings.Settings, names: tuple[str, ...]) -> str:
    """Assignments for a shell of those settings that are not as by default, each with a space after it."""
    defaults = settings.load({"PRESENCE_HOST": "127.0.0.1"})
    values = {name: value for name in names if (value := getattr(config, name)) != getattr(defaults, name)}
    if is_everywhere(config.host):
        values.pop("host", None)  # it is reached at the address of loopback, the default of whoever sends
    if not config.has_separate_queue:
        values.pop("queue_url", None)
    shown = {name: settings.without_password(values[name]) for name in values if name.endswith("_url")}
    if "basic_auth" in values:
        shown["basic_auth"] = "USER:PASSWORD"
    return "".join(f"PRESENCE_{name.upper()}={shlex.quote(str(value))} " for name, value in (values | shown).items())
