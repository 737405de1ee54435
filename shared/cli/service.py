"""A child process of `presence up`, restarted when it ends or no longer answers."""

import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import click

from shared.children import die_with_parent, ending

STOP_SECONDS = 15
LONGEST_PAUSE_SECONDS = 10.0
#: How often it is probed, and how many probes in a row may fail before it counts as frozen.
PROBE_SECONDS = 3.0
PROBES = 5


@dataclass
class Service:
    """One child.

    answers: says within a second or so whether it is alive; None if that cannot be asked. port_variable: a setting
    that gets a free port at each start; `port` is then that port. stop_seconds: how long it may take to stop.
    """

    name: str
    command: list[str]
    environment: dict[str, str]
    answers: Callable[["Service"], bool] | None = None
    port_variable: str = ""
    port: int = 0
    stop_seconds: float = STOP_SECONDS
    process: "subprocess.Popen[bytes] | None" = None
    failures: int = 0
    start_at: float = 0.0
    _probe_at: float = field(default=0.0, init=False)
    _unanswered: int = field(default=0, init=False)

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        environment = self.environment
        if self.port_variable:
            with socket.create_server(("127.0.0.1", 0)) as free:
                self.port = free.getsockname()[1]
            environment = {**environment, self.port_variable: str(self.port)}
        # In its own process group, so that Ctrl-C reaches only us and we stop the services in order.
        self.process = subprocess.Popen(  # noqa: S603  # our own commands
            self.command,
            env=environment,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509  # it makes one system call
        )

    def stop(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(self.stop_seconds)
        except subprocess.TimeoutExpired:
            click.echo(f"presence: {self.name} did not stop in {self.stop_seconds:g} s and was killed", err=True)
            self.process.kill()
            self.process.wait()

    def keep_running(self) -> None:
        """Restarts it, after a growing pause, when it has ended; kills it when it no longer answers."""
        if self.process is None:
            if time.monotonic() >= self.start_at:
                self.start()
        elif (code := self.process.poll()) is not None:
            self.process = None
            self._unanswered = 0
            pause = min(0.5 * 2 ** min(self.failures, 8), LONGEST_PAUSE_SECONDS)
            self.failures += 1
            self.start_at = time.monotonic() + pause
            click.echo(f"presence: {self.name} ended ({ending(code)}); it starts again in {pause:g} s", err=True)
        elif self.answers and time.monotonic() >= self._probe_at:
            self._unanswered = 0 if self.answers(self) else self._unanswered + 1
            self._probe_at = time.monotonic() + PROBE_SECONDS
            if self._unanswered >= PROBES:
                click.echo(f"presence: {self.name} (pid {self.process.pid}) no longer answers and is killed", err=True)
                self.process.kill()
