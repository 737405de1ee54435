"""`presence up`: everything on this machine."""

import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import click
from redis.exceptions import RedisError

from shared import settings
from shared.addresses import is_loopback
from shared.cli import embedded
from shared.cli.running import hold, publish
from shared.cli.service import Service
from shared.errors import PresenceError
from shared.logs import streams
from shared.observe.here import fetch, is_everywhere, listens, url_host
from shared.redis.client import connect

READY_SECONDS = 20
#: Settings that commands in another terminal need if they are not the defaults: those that send, and those that read.
_SENDING = ("host", "port", "callback_path", "basic_auth", "tls_cert", "tls_key")
_READING = ("redis_url", "queue_url", "admin_host", "admin_port", "key_prefix")


@click.command()
def up() -> None:
    """Runs everything on this machine: a server with its data in ./data, a receiver, a worker.

    Settings that matter: PRESENCE_REDIS_URL (your own server instead), PRESENCE_HOST and PRESENCE_PORT (where it takes
    callbacks), PRESENCE_CALLBACK_PATH and PRESENCE_BASIC_AUTH (who may send them), PRESENCE_ADMIN_PORT (where the page
    is).

    \b
    Examples:
      presence up
      PRESENCE_HOST=0.0.0.0 PRESENCE_CALLBACK_PATH=/s3cret presence up
    """
    streams.take_over()
    data = Path("data").absolute()
    given = {name: value for name, value in os.environ.items() if value}  # an empty variable is not set
    environment = {"PRESENCE_HOST": "127.0.0.1", "PRESENCE_JOURNAL_DIR": str(data / "journal"), **given}
    own = not settings.is_given(given, "PRESENCE_REDIS_URL")
    services: list[Service] = []
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stopping.set())
    with hold(data):
        try:
            if own:
                start_server(services, data, environment, stopping)
            config = settings.load(environment)
            _check_servers(config, own=own)
            receiver = Service("receiver", [sys.executable, "-m", "receiver"], environment)
            receiver.stop_seconds += config.stop_delay_seconds
            _start(services, receiver, stopping, lambda: _receives(config, receiver))
            if config.admin_port:
                receiver.answers = lambda it: _says(config.admin_host, config.admin_port, it) is not None
            worker = Service("worker", [sys.executable, "-m", "worker"], environment)
            worker.port = config.worker_admin_port
            if not worker.port:  # it gets a port anyway, so that we notice when it freezes
                worker.port_variable = "PRESENCE_WORKER_ADMIN_PORT"
            _start(services, worker, stopping, lambda: True)
            worker.answers = lambda it: _says(config.admin_host, it.port, it) == "alive"
            publish(data, environment)
            if not stopping.is_set():
                click.echo(_how_to(config, own=own))
            while not stopping.wait(0.2):
                for service in services:
                    service.keep_running()
        finally:
            for service in sorted(services, key=lambda each: each.name == "server"):
                service.stop()
    click.echo("presence: stopped; what was accepted is in ./data")


def start_server(services: list[Service], data: Path, environment: dict[str, str], stopping: threading.Event) -> None:
    """Starts the embedded server on a free port, and puts its URL into the environment. Raises PresenceError."""
    binary = embedded.find_server()
    embedded.check_data(data)
    port = embedded.free_port(embedded.USUAL_PORT)
    while True:
        environment["PRESENCE_REDIS_URL"] = f"redis://127.0.0.1:{port}/0"
        server = Service("server", embedded.arguments(binary, port, data), environment)
        try:
            return _start(services, server, stopping, _answers(server), lambda: embedded.reason(binary, data))
        except PresenceError:
            taken, port = port, embedded.free_port(port)
            if port == taken or server.is_running:
                raise
            services.remove(server)  # another program was faster


def _start(
    services: list[Service],
    service: Service,
    stopping: threading.Event,
    is_ready: Callable[[], bool],
    reason: Callable[[], str] = lambda: "see the line above",
) -> None:
    """Starts it for the first time and waits until it is ready. Raises PresenceError if it ends instead."""
    services.append(service)
    service.start()
    give_up_at = time.monotonic() + READY_SECONDS
    while not stopping.wait(0.05):
        if not service.is_running:
            raise PresenceError(f"the {service.name} did not start: {reason()}")
        if is_ready():
            return
        if time.monotonic() > give_up_at:
            raise PresenceError(f"the {service.name} is not ready after {READY_SECONDS} s")


def _answers(server: Service) -> Callable[[], bool]:
    """Whether that server answers itself: if the port was in use, another one would answer there."""
    client = connect(server.environment["PRESENCE_REDIS_URL"])

    def is_ready() -> bool:
        with suppress(RedisError):
            return server.process is not None and client.info("server")["process_id"] == server.process.pid
        return False

    return is_ready


def _receives(config: settings.Settings, receiver: Service) -> bool:
    """Asks the receiver itself if that is possible: if the port was in use, another program would answer there."""
    if config.admin_port:
        return _says(config.admin_host, config.admin_port, receiver) is not None
    return listens(config, 1)


def _says(host: str, port: int, service: Service) -> str | None:
    """What the service says about itself on /healthz; None if it does not answer, or another program does."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        said = fetch(host, port, "/healthz", 1)
        if service.process and said["pid"] == service.process.pid:
            return str(said["status"])
    return None


def _check_servers(config: settings.Settings, *, own: bool) -> None:
    """Raises PresenceError if a server that we did not start does not answer."""
    for variable, url in (("PRESENCE_REDIS_URL", config.redis_url), ("PRESENCE_QUEUE_URL", config.queue_url)):
        try:
            connect(url).ping()
        except RedisError as error:
            hint = "" if own else "; unset it to start a server here, with its data in ./data"
            raise PresenceError(f"{variable}: {settings.without_password(url)}: {error}{hint}") from None


def _how_to(config: settings.Settings, *, own: bool) -> str:
    host = "HOST" if is_everywhere(config.host) else url_host(config.host)
    scheme = "https" if config.tls_cert else "http"
    credentials = "USER:PASSWORD@" if config.basic_auth else ""  # our output must not show the real ones
    url = f"{scheme}://{credentials}{host}:{config.port}{config.callback_path}"
    redis = settings.without_password(config.redis_url)
    others = "other machines too"
    reach = "this machine only (PRESENCE_HOST=0.0.0.0 for others)" if is_loopback(config.host) else others
    program = sys.argv[0] if os.sep in sys.argv[0] else "presence"
    taken = f":{embedded.USUAL_PORT}/" not in redis
    elsewhere = f" (port {embedded.USUAL_PORT} is taken by another program)" if own and taken else ""
    shown = f"http://{url_host(config.admin_host)}:{config.admin_port}/"
    page = f"See all of it on a page: {shown}\n" if config.admin_port else ""
    send = read = program
    if os.sep not in program or Path(program).is_absolute():  # else it works here alone, where it finds the settings
        send, read = _assignments(config, _SENDING) + program, _assignments(config, _READING) + program
    return f"""
presence is up; Ctrl-C stops it. It takes callbacks at {url} from {reach};
presence is in {redis}{elsewhere}. Commands run in this directory find it by themselves.
{page}
In OpenIM's config/webhooks.yml (3.7 and later; docs/connect.md has the others) change these, and restart OpenIM:
  url: {url}/callbackExample
  afterUserOnline: {{enable: true, timeout: 5}}      # and afterUserOffline, afterUserKickOff

See it work, in another terminal:
  {send} send --user alice --event online
  {read} get alice
  {read} watch
  {read} status
"""


def _assignments(config: settings.Settings, names: tuple[str, ...]) -> str:
    """Shell assignments of the settings that are not the defaults, each with a space after it."""
    defaults = settings.load({"PRESENCE_HOST": "127.0.0.1"})
    values = {name: value for name in names if (value := getattr(config, name)) != getattr(defaults, name)}
    if is_everywhere(config.host):
        values.pop("host", None)  # commands reach it on loopback, which is their default
    if not config.has_separate_queue:
        values.pop("queue_url", None)
    shown = {name: settings.without_password(values[name]) for name in values if name.endswith("_url")}
    if "basic_auth" in values:
        shown["basic_auth"] = "USER:PASSWORD"
    return "".join(f"PRESENCE_{name.upper()}={shlex.quote(str(value))} " for name, value in (values | shown).items())
