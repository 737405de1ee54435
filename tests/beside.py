"""A presence beside an OpenIM whose gateways die and whose callbacks are lost, for the tests."""

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import openim as fakes
from click.testing import CliRunner, Result
from redis import Redis
from rq import SimpleWorker
from rq.serializers import JSONSerializer

from openim_presence.keys import Keys
from shared.cli import cli
from shared.events import Event
from shared.queue import BatchJob, open_queue
from shared.settings import Settings
from worker import jobs
from worker.gateways import note
from worker.store.store import Store

MINUTE = 60_000
PIDS = (7, 8)


@dataclass
class World:
    """A presence beside an OpenIM; what OpenIM calls back gets here, unless it is lost."""

    redis: Redis
    url: str
    openim: fakes.OpenIM
    connections: dict[str, list[Any]] = field(default_factory=dict)

    def come(self, users: Iterable[str], platform_id: int = 1, gateway: int = 0) -> None:
        for user in users:
            connection = self.openim.im.open(user, platform_id, gateway=gateway)
            self.connections.setdefault(user, []).append(connection)

    def go(self, users: Iterable[str]) -> None:
        for user in users:
            self.openim.im.close(self.connections[user].pop())

    def call_back(self, *, minutes_ago: float = 1, lost: bool = False) -> None:
        """Delivers what the gateways send, at that time."""
        at = time.time_ns() // 1_000_000 - int(minutes_ago * MINUTE)
        for gateway in range(len(PIDS)):
            events = [
                Event(
                    each.user_id,
                    f"callbackAfterUser{each.step}Command",  # type: ignore[arg-type]
                    at,
                    "",
                    each.platform_id,
                    "",
                    each.operation_id,
                    at,
                    f"{number}",
                    f"10.0.0.{gateway + 1}",
                )
                for number, each in enumerate(self.openim.im.second_passes(gateway))
            ]
            if not lost:
                Store(self.redis, Settings()).apply(events)
                note(self.redis, Keys("presence"), events, at)

    def reconcile(self, *arguments: str, code: int = 0, **more: Any) -> list[dict[str, Any]]:
        """Runs `presence reconcile` and the workers. The JSON lines that it printed."""
        result = self.run(*arguments, "--json", **more)
        assert result.exit_code == code, result.output
        self.work()
        return [json.loads(line) for line in result.stdout.splitlines()]

    def run(self, *arguments: str, **more: Any) -> Result:
        environment = {
            "PRESENCE_REDIS_URL": self.url,
            "PRESENCE_OPENIM_API": self.openim.url,
            "PRESENCE_OPENIM_SECRET": fakes.SECRET,
        }
        return CliRunner().invoke(cli, ["reconcile", *arguments], env=environment, **more)

    def work(self, **settings: Any) -> None:
        """Applies what is on the queue, as a worker does."""
        queue = open_queue(self.redis, Settings())
        worker = SimpleWorker([queue], connection=self.redis, serializer=JSONSerializer, job_class=BatchJob)
        with (
            patch.object(jobs, "_store", lambda: Store(self.redis, Settings())),
            patch.object(jobs, "_settings", lambda: Settings(**settings)),
        ):
            worker.work(burst=True, logging_level="CRITICAL")
        assert not queue.failed_job_registry.count

    def ours(self) -> dict[str, list[int]]:
        """Who is online, and where, as presence says."""
        found = {}
        for key in self.redis.scan_iter("presence:*"):
            platforms = (self.redis.hget(key, "platforms") or b"").decode()
            if platforms:
                found[key.decode().removeprefix("presence:")] = [int(each) for each in platforms.split(",")]
        return found

    def truth(self) -> dict[str, list[int]]:
        """The same as the running gateways know it, whether the API reaches them or not."""
        found: dict[str, set[int]] = {}
        for gateway in self.openim.im._gateways:
            for user, connections in gateway.connections.items():
                found.setdefault(user, set()).update(each.platform_id for each in connections)
        return {user: sorted(platforms) for user, platforms in found.items()}


def users(name: str, count: int) -> list[str]:
    return [f"{name}{number}" for number in range(count)]
