"""The consumer groups of docs/change-feed.md: killed or left behind, they miss nothing without noticing it.

test_group.py tests what only the library does, such as surviving the loss of an answer.
"""

import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import recipes
from redis import Redis
from redis.exceptions import RedisError
from support import Process, Server, on_one_server, wait_until

STREAM = "presence-changes"
Keep = Callable[[Process], Process]
Start = Callable[[Server], "Consumer"]


@pytest.fixture(params=["in Python", "in Go"])
def start(request: pytest.FixtureRequest, tmp_path: Path, shared_tmp: Path, keep: Keep) -> Start:
    """Starts a consumer, with a time after which it takes over what others do not finish of 0.2 s."""
    go = request.param == "in Go" and recipes.make_once(shared_tmp, "go", recipes.make_go) / "bin" / "consumer"

    def start(server: Server) -> Consumer:
        path = go or recipes.write(tmp_path, "consumer.py", server.port, TAKE_OVER_SECONDS="0.2")
        consumer = Consumer([str(path)] if go else [sys.executable, str(path)], server, tmp_path)
        keep(consumer)
        return consumer

    return start


class Consumer(Process):
    def __init__(self, command: list[str], server: Server, directory: Path) -> None:
        super().__init__(command, {"REDIS_URL": server.url}, directory, "consumer")

    def done(self) -> list[str]:
        """The ids of the changes handled, in that order. SIGKILL may cut a line short; the next one continues it."""
        return re.findall(r"(\d{13}-\d+) \S+ \S+$", self.text(), re.MULTILINE)

    def resyncs(self) -> int:
        return self.text().count("read everybody")


def add(redis: Redis, *users: str) -> list[str]:
    return [redis.xadd(STREAM, {"user_id": user, "status": "online"}).decode() for user in users]


def pending(redis: Redis) -> int:
    return int(redis.xpending(STREAM, "mailer")["pending"])


def write_until(stop: threading.Event, server: Server) -> None:
    with Redis(port=server.port) as client:
        while not stop.wait(0.001):
            try:
                add(client, "u")
            except RedisError:
                stop.wait(0.05)


def test_nothing_is_lost_when_consumer_and_redis_are_killed(start: Start, tmp_path: Path, keep: Keep) -> None:
    server = Server(tmp_path / "server", appendfsync="always")
    keep(server)
    consumer = start(server)
    stop = threading.Event()
    writer = threading.Thread(target=write_until, args=(stop, server))
    writer.start()
    try:
        for victim in (consumer, server, consumer, server, consumer):
            seen = len(consumer.done())
            wait_until(lambda seen=seen: len(consumer.done()) > seen + 50)
            victim.kill()
            if victim is server:
                server.restart()
            else:
                consumer.start()
    finally:
        stop.set()
        writer.join()
    written = [entry.decode() for entry, _ in server.client.xrange(STREAM)]
    wait_until(lambda: set(written) <= set(consumer.done()))
    assert list(dict.fromkeys(consumer.done())) == written  # in order, but for those that came again
    wait_until(lambda: pending(server.client) == 0)
    assert consumer.resyncs() == 1


@on_one_server
def test_what_a_dead_consumer_was_given_is_taken_over(start: Start, redis: Redis, server: Server) -> None:
    redis.xgroup_create(STREAM, "mailer", "0", mkstream=True)
    written = add(redis, "a", "b", "c")
    redis.xreadgroup("mailer", "mailer-2", {STREAM: ">"}, count=2)
    consumer = start(server)
    wait_until(lambda: sorted(consumer.done()) == written)
    wait_until(lambda: pending(redis) == 0)
    assert consumer.resyncs() == 0


@on_one_server
def test_a_consumer_that_was_away_too_long_reads_everybody_once(start: Start, redis: Redis, server: Server) -> None:
    consumer = start(server)
    wait_until(lambda: consumer.resyncs() == 1, what="the first start")
    (first,) = add(redis, "first")
    wait_until(lambda: consumer.done() == [first] and pending(redis) == 0)
    consumer.kill()

    redis.xadd(STREAM, {"user_id": "missed"})
    _, kept = add(redis, "missed", "kept")
    redis.xtrim(STREAM, maxlen=1, approximate=False)
    consumer.start()
    wait_until(lambda: consumer.done() == [first, kept] and pending(redis) == 0)
    assert consumer.resyncs() == 2

    consumer.kill()
    add(redis, "given, but trimmed away before it was done")
    redis.xreadgroup("mailer", "mailer-1", {STREAM: ">"})
    redis.xtrim(STREAM, maxlen=0, approximate=False)
    consumer.start()
    wait_until(lambda: pending(redis) == 0)
    (last,) = add(redis, "last")
    wait_until(lambda: consumer.done() == [first, kept, last] and pending(redis) == 0)
    assert consumer.resyncs() >= 3  # for the one it had been given, and for the emptied stream


@on_one_server
def test_a_group_that_is_gone_is_made_again(start: Start, redis: Redis, server: Server) -> None:
    consumer = start(server)
    before = add(redis, "before")
    wait_until(lambda: consumer.done() == before)
    redis.flushall()
    after = add(redis, "after")
    wait_until(lambda: consumer.done() == before + after)
    assert consumer.resyncs() == 2
