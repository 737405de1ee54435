"""Machines whose clocks differ. Each program here has its own clock, which is off by some seconds."""

import sys
from collections.abc import Callable
from pathlib import Path

from redis import Redis
from support import Process, Receiver, Server, Worker, on_one_server, wait_until
from topology import Flips

from shared.observe import health, metrics
from shared.observe.poller import Poller
from shared.queue import enqueue_encoded, open_queue
from shared.settings import Settings

Keep = Callable[[Process], Process]

#: Every function that our programs and RQ ask for the time of day, in each module that imports it by name.
_PROGRAM = """
import datetime, sys, time
import rq
import rq.utils
ahead = {seconds}
own_s, own_ns, own_now = time.time, time.time_ns, rq.utils.now
time.time = lambda: own_s() + ahead
time.time_ns = lambda: own_ns() + ahead * 10**9
now = lambda: own_now() + datetime.timedelta(seconds=ahead)
for name, module in list(sys.modules.items()):
    if name.startswith("rq") and getattr(module, "now", None) is own_now:
        module.now = now
from {program}.__main__ import main
raise SystemExit(main())
"""


class _Ahead:
    program: str

    def __init__(self, directory: Path, redis_url: str, seconds: int, name: str = "", **settings: str) -> None:
        self._text = _PROGRAM.format(seconds=seconds, program=self.program)
        super().__init__(directory, redis_url, name or f"{self.program}{seconds:+}", **settings)  # type: ignore[call-arg]

    def start(self) -> None:
        self.command = [sys.executable, "-c", self._text]
        super().start()  # type: ignore[misc]


class WorkerAhead(_Ahead, Worker):
    program = "worker"


class ReceiverAhead(_Ahead, Receiver):
    program = "receiver"


def test_nothing_that_presence_forgets_is_lost(tmp_path: Path, keep: Keep) -> None:
    queue, presence = Server(tmp_path / "queue"), Server(tmp_path / "presence", appendonly="no")
    receiver = Receiver(tmp_path, presence.url, queue_url=queue.url)
    sweeper = WorkerAhead(tmp_path, presence.url, 60, queue_url=queue.url)
    for process in (queue, presence, receiver, sweeper):
        keep(process)
    wait_until(lambda: queue.client.hget("presence-sweep", "presence"), what="the sweep")
    keep(WorkerAhead(tmp_path, presence.url, -60, queue_url=queue.url))  # to the first, its batches look old
    flips = Flips(receiver)
    flips.go_on(0.5)
    presence.client.save()
    flips.go_on(1.5)
    presence.kill()
    presence.restart()
    flips.go_on(0.2)
    flips.stop()
    wait_until(lambda: not flips.not_applied(presence.client), 30, "all events to be applied again")


def enqueue(redis: Redis, *users: bytes) -> None:
    event = b'["%s","callbackUserOfflineCommand",1,"",0,"","op",7]'
    enqueue_encoded(open_queue(redis, Settings()), [event % user for user in users], 0)


@on_one_server
def test_retries_are_neither_early_nor_late(server: Server, redis: Redis, tmp_path: Path, keep: Keep) -> None:
    redis.set("presence:bad", "not a hash")
    worker = WorkerAhead(tmp_path, server.url, 3600)
    keep(worker)
    enqueue(redis, b"bad", b"good")
    wait_until(lambda: redis.zcard("rq:scheduled:presence"), what="the retry")
    ((_, due),) = redis.zrange("rq:scheduled:presence", 0, -1, withscores=True)
    assert due < redis.time()[0] + 60
    redis.delete("presence:bad")
    wait_until(lambda: redis.hget("presence:bad", "status") == b"offline", what="the retry to succeed")


@on_one_server
def test_a_job_counts_as_abandoned_by_one_clock(server: Server, redis: Redis, tmp_path: Path, keep: Keep) -> None:
    worker = WorkerAhead(tmp_path, server.url, 3600)
    keep(worker)
    wait_until(lambda: redis.scard("rq:workers") == 1)
    begun, abandoned = "begun:by-another", "abandoned:by-another"
    now = redis.time()[0]
    redis.zadd("rq:wip:presence", {begun: now + 100, abandoned: now - 1})
    wait_until(lambda: redis.zrange("rq:wip:presence", 0, -1) == [begun.encode()], what="the abandoned one to go")
    redis.delete("rq:wip:presence")


@on_one_server
def test_a_clock_that_differs_is_named(server: Server, redis: Redis, tmp_path: Path, keep: Keep) -> None:
    for process in (ReceiverAhead(tmp_path, server.url, 8), WorkerAhead(tmp_path, server.url, -3600)):
        keep(process)
    wait_until(lambda: redis.scard("rq:workers") == 1 and redis.hlen("presence-receivers") == 1)
    settings = Settings(redis_url=server.url, queue_url=server.url)
    poller = Poller(settings)

    def notes() -> list[str]:
        snapshot = poller.poll()
        assert not health.problems(snapshot, settings), "nobody is silent, whatever the clocks"
        return [note for note in health.notes(snapshot) if "clock" in note]

    found = wait_until(lambda: len(notes()) == 2 and notes(), what="both to be named")
    assert found[0].startswith("the clock of receiver ") and " is 8.0 s ahead of that of the queue's server" in found[0]
    assert found[1].startswith("the clock of worker ") and " is 3,600.0 s behind that of the queue's" in found[1]
    page = metrics.page(metrics.of_snapshot(poller.poll())).decode()
    assert (
        'presence_clock_skew_seconds{role="receiver"} 8.' in page
        or 'presence_clock_skew_seconds{role="receiver"} 7.9' in page
    )
    for role, least in (("receiver", 7.5), ("worker", 3599.5)):
        (line,) = (
            line for line in page.splitlines() if line.startswith(f'presence_clock_skew_seconds{{role="{role}"}}')
        )
        assert least < float(line.split()[1]) < least + 1
