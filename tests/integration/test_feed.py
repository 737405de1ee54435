"""Following the changes: `presence watch`, and the feed under it."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
import redis.asyncio as redis_asyncio
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from support import PRESENCE, REPLY_FORMS, Process, Server, on_one_server, wait_until

from openim_presence import AsyncFeed, Change, Feed, Missed

STREAM = "presence-changes"
Keep = Callable[[Process], Process]


def change(user: str, **fields: str) -> dict[Any, Any]:
    return {
        "user_id": user,
        "status": "online",
        "previous": "",
        "seq": "1",
        "changed_at": "7",
        "command": "callbackUserOnlineCommand",
        "conn_id": "",
        "platform_id": "",
        "operation_id": "op",
    } | fields


class Following:
    """A feed, blocking or asyncio, called in the same way."""

    def __init__(self, port: int, flavour: str, after: str | None = None, **form: Any) -> None:
        self._loop = asyncio.new_event_loop() if flavour == "asyncio" else None
        self._client: Any = (redis_asyncio if self._loop else redis_py).Redis(port=port, **form)
        self.feed: Any = (AsyncFeed if self._loop else Feed)(self._client, after=after)

    def poll(self, wait_seconds: float = 0.01) -> list[Change]:
        found = self.feed.poll(wait_seconds)
        return list(self._loop.run_until_complete(found) if self._loop else found)

    def try_once(self) -> None:
        self._client.set_retry(type(self._client.get_retry())(NoBackoff(), 0))

    def close(self) -> None:
        if self._loop:
            self._loop.run_until_complete(self._client.aclose())
            self._loop.close()
        else:
            self._client.close()


Make = Callable[..., Following]


@pytest.fixture(params=["sync", "asyncio"])
def follow(request: pytest.FixtureRequest, server: Server) -> Iterator[Make]:
    made: list[Following] = []

    def make(after: str | None = None, **form: Any) -> Following:
        made.append(Following(server.port, request.param, after, **form))
        return made[-1]

    yield make
    for each in made:
        each.close()


def users(feed: Following) -> list[str]:
    return [each.user_id for each in feed.poll()]


# The module


@pytest.mark.parametrize("form", REPLY_FORMS, ids=str)
def test_changes_come_once_and_in_order(redis: Redis, follow: Make, form: dict[str, Any]) -> None:
    redis.xadd(STREAM, change("before"))
    feed = follow(**form)
    assert users(feed) == []
    redis.xadd(STREAM, change("alice"), id="9999999999999-1")
    redis.xadd(STREAM, change("bob", status="offline"), id="9999999999999-2")
    first, second = feed.poll()
    assert first == Change("9999999999999-1", "alice", "online", "", "1", 7, "callbackUserOnlineCommand", "", "", "op")
    assert (second.user_id, second.status) == ("bob", "offline")
    assert users(feed) == []
    assert feed.feed.last == second.id
    redis.delete(STREAM)
    with pytest.raises(Missed, match="no longer has 9999999999999-2"):
        feed.poll()


@on_one_server
def test_a_poll_longer_than_the_socket_timeout_fails_and_loses_nothing(redis: Redis, follow: Make) -> None:
    feed = follow("0", socket_timeout=0.2)
    feed.try_once()
    with pytest.raises(RedisTimeoutError):
        feed.poll(5)
    redis.xadd(STREAM, change("alice"))
    assert users(feed) == ["alice"]


def test_more_than_one_batch_is_read_whole(redis: Redis, follow: Make) -> None:
    feed = follow("0")
    pipeline = redis.pipeline()
    for number in range(2500):
        pipeline.xadd(STREAM, change(f"u{number}"))
    pipeline.execute()
    assert [name for _ in range(3) for name in users(feed)] == [f"u{number}" for number in range(2500)]


def test_an_empty_stream_is_followed_from_its_first_change(redis: Redis, follow: Make) -> None:
    feed = follow()
    assert users(feed) == []
    redis.xadd(STREAM, change("alice"))
    assert users(feed) == ["alice"]


def test_reading_goes_on_after_a_given_change(redis: Redis, follow: Make) -> None:
    for number in (1, 2, 3):
        redis.xadd(STREAM, change(f"u{number}"), id=f"{number}-0")
    assert users(follow("1-0")) == ["u2", "u3"]


@pytest.mark.parametrize("gone", ["trimmed", "lost"])
def test_a_feed_that_goes_on_where_another_ended_notices_what_is_gone(redis: Redis, follow: Make, gone: str) -> None:
    redis.xadd(STREAM, change("read"), id="100000-0")
    former = follow("0")
    assert users(former) == ["read"]
    for name, entry_id in (("missed", "100001-0"), ("kept", "100002-0")):
        redis.xadd(STREAM, change(name), id=entry_id)
    if gone == "trimmed":
        redis.xtrim(STREAM, maxlen=1, approximate=False)
    else:
        redis.delete(STREAM)
    feed = follow(former.feed.last)
    with pytest.raises(Missed, match="no longer has 100000-0, the last one read"):
        feed.poll()
    assert users(feed) == (["kept"] if gone == "trimmed" else [])


def test_a_time_is_no_change_that_must_be_there(redis: Redis, follow: Make) -> None:
    for number in (1, 2, 3):
        redis.xadd(STREAM, change(f"u{number}"), id=f"{number}00-1")
    assert users(follow("150")) == ["u2", "u3"]
    assert users(follow("0-0")) == ["u1", "u2", "u3"]


def test_what_was_trimmed_unread_is_noticed_once(redis: Redis, follow: Make) -> None:
    feed = follow()
    users(feed)
    redis.xadd(STREAM, change("read"))
    users(feed)
    for name in ("missed", "kept"):
        redis.xadd(STREAM, change(name))
    redis.xtrim(STREAM, maxlen=1, approximate=False)
    with pytest.raises(Missed, match="no longer has") as missed:
        feed.poll()
    assert missed.value.last_id == redis.xrevrange(STREAM)[0][0].decode()
    assert users(feed) == ["kept"]
    assert users(feed) == []


def test_a_poll_without_a_wait_does_not_wait(follow: Make) -> None:
    feed = follow("0")
    assert feed.poll(0) == []
    assert feed.poll(0.0001) == []


def test_trimming_of_what_was_read_before_is_no_loss(redis: Redis, follow: Make) -> None:
    feed = follow("0")
    for name in ("a", "b", "c"):
        redis.xadd(STREAM, change(name))
    users(feed)
    redis.xtrim(STREAM, maxlen=1, approximate=False)
    redis.xadd(STREAM, change("d"))
    assert users(feed) == ["d"]


@pytest.mark.parametrize("clock", ["is right", "was set back a little", "was set back a day"])
def test_a_server_that_lost_its_last_moments_hides_nothing(redis: Redis, follow: Make, clock: str) -> None:
    now = 1_700_000_000_000
    kept = now - 60_000 if clock != "was set back a day" else now - 90_000_000
    new = {"is right": now + 3000, "was set back a little": now - 5000, "was set back a day": now - 86_400_000}[clock]
    redis.xadd(STREAM, change("kept"), id=f"{kept}-0")
    redis.xadd(STREAM, change("lost"), id=f"{now}-0")
    feed = follow("0")
    assert users(feed) == ["kept", "lost"]
    redis.delete(STREAM)  # as a server does that comes back with an older file
    redis.xadd(STREAM, change("kept"), id=f"{kept}-0")
    with pytest.raises(Missed):
        feed.poll()
    redis.xadd(STREAM, change("new"), id=f"{new}-0")
    assert users(feed)[-1:] == ["new"]
    redis.xadd(STREAM, change("newer"), id=f"{new}-1")
    assert users(feed) == ["newer"]


def test_an_emptied_server_is_followed_from_its_first_change(redis: Redis, follow: Make) -> None:
    redis.xadd(STREAM, change("old"))
    feed = follow("0")
    assert users(feed) == ["old"]
    redis.flushall()
    with pytest.raises(Missed):
        feed.poll()
    assert users(feed) == []
    redis.xadd(STREAM, change("new"))
    assert users(feed) == ["new"]


def test_an_entry_that_somebody_else_wrote_does_not_stop_the_feed(redis: Redis, follow: Make) -> None:
    feed = follow("0")
    redis.xadd(STREAM, {"x": b"\xff", "changed_at": "soon", "user_id": b"\xff"})
    redis.xadd(STREAM, change("alice"))
    assert users(feed) == ["\ufffd", "alice"]


# The command


class Watch(Process):
    def __init__(self, directory: Path, server: Server, *options: str) -> None:
        command = [sys.executable, PRESENCE, "watch", *options]
        super().__init__(command, {"PRESENCE_REDIS_URL": server.url}, directory, "watch")

    def shown(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text().splitlines() if line.startswith("{")]

    def users(self) -> list[str]:
        return [each["user_id"] for each in self.shown()]


def is_watched(server: Server) -> bool:
    with suppress(RedisError):
        return any(client["cmd"] == "xread" for client in server.client.client_list())
    return False


def test_watch_shows_changes_and_survives_a_restart_of_redis(tmp_path: Path, keep: Keep) -> None:
    server = Server(tmp_path / "server", appendfsync="always")
    keep(server)
    watch = Watch(tmp_path, server, "--json")
    keep(watch)
    wait_until(lambda: is_watched(server))
    server.client.xadd(STREAM, change("alice"))
    wait_until(lambda: watch.users() == ["alice"])
    server.kill()
    wait_until(lambda: "is not available" in watch.text())
    server.restart()
    server.client.xadd(STREAM, change("bob", status="offline"))
    server.client.xadd(STREAM, change("carol"))
    wait_until(lambda: watch.users() == ["alice", "bob", "carol"])
    first = watch.shown()[0]
    assert first.pop("id")
    assert first == {**change("alice"), "changed_at": 7}
    wait_until(lambda: "is back after" in watch.text())
    assert "missing" not in watch.text()
    watch.signal(signal.SIGINT)
    assert watch.popen.wait(10) == 0
    assert "Traceback" not in watch.text()


def test_watch_says_when_redis_came_back_without_its_last_changes(tmp_path: Path, keep: Keep) -> None:
    server = Server(tmp_path / "server", appendonly="no", save="")
    keep(server)
    watch = Watch(tmp_path, server, "--json")
    keep(watch)
    wait_until(lambda: is_watched(server))
    server.client.xadd(STREAM, change("alice"))
    wait_until(lambda: watch.users() == ["alice"])
    server.kill()
    server.restart()
    wait_until(lambda: "changes may be missing" in watch.text())
    server.client.xadd(STREAM, change("bob"))
    wait_until(lambda: watch.users() == ["alice", "bob"])


@on_one_server
def test_watch_begins_in_the_past_where_asked_to(server: Server, redis: Redis, tmp_path: Path, keep: Keep) -> None:
    now = int(time.time() * 1000)
    for minutes in (30, 5, 0):
        redis.xadd(STREAM, change(f"{minutes} minutes ago\n"), id=f"{now - minutes * 60_000}-0")
    watch = Watch(tmp_path, server, "--since", "10m")
    keep(watch)
    wait_until(lambda: watch.text().count("\n") == 2)
    first, second = watch.text().splitlines()
    assert "5 minutes ago\\n" in first
    assert "unknown -> online" in second


@on_one_server
def test_watch_ends_when_nobody_reads_it_any_more(server: Server, redis: Redis) -> None:
    redis.xadd(STREAM, change("alice"))
    command = f"{PRESENCE} watch --json --since 0 | head -1; echo ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PRESENCE_REDIS_URL": server.url}
    done = subprocess.run(
        ["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=20, check=True
    )
    line, code = done.stdout.splitlines()
    assert json.loads(line)["user_id"] == "alice"
    assert (code, done.stderr) == ("0", "")


@on_one_server
def test_watch_says_what_a_wrong_since_should_be(server: Server, tmp_path: Path) -> None:
    watch = Watch(tmp_path, server, "--since", "yesterday")
    assert watch.popen.wait(10) == 2
    assert "90s, 10m, 2h or 7d" in watch.text()


@on_one_server
def test_watch_ends_where_the_key_is_no_stream(server: Server, redis: Redis, tmp_path: Path) -> None:
    redis.set(STREAM, "x")
    watch = Watch(tmp_path, server)
    assert watch.popen.wait(10) == 1
    assert "WRONGTYPE" in watch.text()
    assert "Traceback" not in watch.text()
