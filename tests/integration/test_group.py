"""The library's consumer group, blocking or asyncio: cut off or left behind, it misses nothing without saying so."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.connection import Connection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from support import REPLY_FORMS, Server, on_one_server

from openim_presence import AsyncConsumerGroup, ConsumerGroup, Missed

STREAM = "presence-changes"


class Consumer:
    """A consumer, blocking or asyncio, called in the same way."""

    def __init__(self, port: int, flavour: str, name: str, **options: Any) -> None:
        form = options.pop("form", {})
        self._loop = asyncio.new_event_loop() if flavour == "asyncio" else None
        self._client: Any = (redis.asyncio if self._loop else redis).Redis(port=port, **form)
        self._group: Any = (AsyncConsumerGroup if self._loop else ConsumerGroup)(
            self._client, "mailer", name, **options
        )

    def _call(self, result: Any) -> Any:
        return self._loop.run_until_complete(result) if self._loop else result

    def poll(self, wait_seconds: float = 0.01) -> list[Any]:
        return list(self._call(self._group.poll(wait_seconds)))

    def ids(self) -> list[str]:
        return [change.id for change in self.poll()]

    def users(self, handled: list[str] | None = None) -> list[str]:
        """Polls, does the work, which is to add the users to those handled, and acknowledges it."""
        users = [] if handled is None else handled
        changes = self.poll()
        users += [change.user_id for change in changes]
        self.ack(changes)
        return users

    def ack(self, done: Any) -> None:
        self._call(self._group.ack(done))

    def ready(self) -> "Consumer":
        """Acknowledges the first Missed, as at the very first start."""
        self.missed("the group mailer is new")
        assert self.poll() == []
        return self

    def missed(self, why: str, acknowledged: bool = True) -> Missed:
        """Expects every poll to say why changes may be missing; then acknowledges that all users were read."""
        for _ in range(2):
            with pytest.raises(Missed, match=why) as raised:
                self.poll()
        if acknowledged:
            self.ack(raised.value)
        return raised.value

    def try_once(self) -> None:
        self._client.set_retry(type(self._client.get_retry())(NoBackoff(), 0))

    def close(self) -> None:
        if self._loop:
            self._loop.run_until_complete(self._client.aclose())
            self._loop.close()
        else:
            self._client.close()


Make = Callable[..., Consumer]


@pytest.fixture(params=["sync", "asyncio"])
def consumer(request: pytest.FixtureRequest, server: Server) -> Iterator[Make]:
    made: list[Consumer] = []

    def make(name: str = "mailer-1", **options: Any) -> Consumer:
        made.append(Consumer(server.port, request.param, name, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def add(client: redis.Redis, *users: str) -> list[str]:
    ids: Any = [client.xadd(STREAM, {"user_id": user, "status": "online"}) for user in users]
    return [each.decode() for each in ids]


def pending(client: redis.Redis) -> int:
    found: Any = client.xpending(STREAM, "mailer")
    return int(found["pending"])


@on_one_server
def test_a_poll_longer_than_the_socket_timeout_fails_and_loses_nothing(consumer: Make, redis: redis.Redis) -> None:
    group = consumer(form={"socket_timeout": 0.2}).ready()
    group.try_once()
    with pytest.raises(RedisTimeoutError):
        group.poll(5)
    add(redis, "alice")
    assert group.users() == ["alice"]


@pytest.mark.parametrize("form", REPLY_FORMS, ids=str)
def test_changes_come_in_order_and_are_done_when_acknowledged(
    consumer: Make, redis: redis.Redis, form: dict[str, Any]
) -> None:
    group = consumer(form=form)
    assert group.missed("is new").last_id == "0-0"
    assert group.poll() == []
    written = add(redis, *map(str, range(250)))
    given = [change for _ in range(2) for change in group.poll()]
    assert [change.id for change in given] == written[:100] * 2  # not acknowledged, so it came again
    assert (given[0].user_id, given[0].status) == ("0", "online")
    users = [user for _ in range(3) for user in group.users()]
    assert users == list(map(str, range(250)))
    assert group.users() == []
    assert pending(redis) == 0


def test_the_group_begins_at_the_oldest_change_after_everybody_was_read(consumer: Make, redis: redis.Redis) -> None:
    *_, last = add(redis, "before", "before, too")
    consumer().missed("the group mailer is new", acknowledged=False)
    group = consumer()  # a program that dies while it reads all users reads them again
    assert group.missed("the group mailer is new").last_id == last
    assert group.users() == ["before", "before, too"]
    assert consumer().users() == []  # after a restart, too


def test_what_was_given_before_a_restart_comes_first(consumer: Make, redis: redis.Redis) -> None:
    group = consumer().ready()
    written = add(redis, "a", "b")
    assert group.ids() == written
    add(redis, "c")
    again = consumer()
    assert again.users() == ["a", "b"]
    assert again.users() == ["c"]


def test_what_a_dead_consumer_was_given_is_taken_over(consumer: Make, redis: redis.Redis) -> None:
    consumer("mailer-1").ready()
    add(redis, "a", "b", "c")
    redis.xreadgroup("mailer", "mailer-2", {STREAM: ">"}, count=2)
    assert consumer("mailer-1").users() == ["c"]
    assert sorted(consumer("mailer-1", take_over_seconds=0).users()) == ["a", "b"]
    assert pending(redis) == 0


@on_one_server
def test_several_consumers_share_the_work(consumer: Make, redis: redis.Redis) -> None:
    both = [consumer("mailer-1").ready(), consumer("mailer-2")]
    written = add(redis, *map(str, range(1000)))
    given = [group.users() for _ in range(5) for group in both]
    assert sorted(user for users in given for user in users) == sorted(map(str, range(len(written))))
    assert all(users == sorted(users, key=int) for users in given)


def test_a_consumer_that_was_away_for_too_long_is_told_until_everybody_was_read(
    consumer: Make, redis: redis.Redis
) -> None:
    group = consumer().ready()
    add(redis, "done")
    assert group.users() == ["done"]
    add(redis, "missed", "kept")
    redis.xtrim(STREAM, maxlen=1, approximate=False)
    consumer().missed("no longer has", acknowledged=False)
    group.missed("no longer has")
    assert group.users() == ["kept"]
    assert group.users() == []


def test_a_change_that_was_trimmed_away_before_it_was_done_is_told_until_everybody_was_read(
    consumer: Make, redis: redis.Redis
) -> None:
    group = consumer().ready()
    add(redis, "given", "given, too", "kept")
    assert len(group.poll()) == 3
    redis.xtrim(STREAM, maxlen=1, approximate=False)
    consumer("mailer-2", take_over_seconds=0).missed("2 were trimmed away", acknowledged=False)
    group.missed("2 were trimmed away")
    assert group.users() == ["kept"]
    assert pending(redis) == 0


def test_a_change_that_was_removed_before_it_was_done_is_told_of_once(consumer: Make, redis: redis.Redis) -> None:
    group = consumer().ready()
    written = add(redis, "a", "removed", "c")
    assert len(group.poll()) == 3
    redis.xdel(STREAM, written[1])
    group.missed("1 were removed")
    assert group.users() == ["a", "c"]
    assert pending(redis) == 0


def test_what_is_trimmed_away_during_a_poll_is_noticed(
    consumer: Make, redis: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = consumer().ready()
    add(redis, "done")
    group.users()
    add(redis, "missed", "kept")
    _before(monkeypatch, "XREADGROUP", lambda: redis.xtrim(STREAM, maxlen=1, approximate=False))
    group.missed("while they were being read")
    assert group.users() == ["kept"]


def test_an_emptied_server_is_followed_from_its_first_change(consumer: Make, redis: redis.Redis) -> None:
    group = consumer().ready()
    redis.flushall()
    add(redis, "after")
    group.missed("is new")
    assert group.users() == ["after"]


def test_a_group_that_another_consumer_made_again_is_not_begun_twice(consumer: Make, redis: redis.Redis) -> None:
    add(redis, "a", "b")
    slow, quick = consumer("mailer-1"), consumer("mailer-2")
    missed = slow.missed("is new", acknowledged=False)
    quick.missed("is new")
    assert quick.users() == ["a", "b"]
    slow.ack(missed)
    assert slow.users() == []


def test_a_server_that_is_emptied_while_all_users_are_read_is_told_of_again(consumer: Make, redis: redis.Redis) -> None:
    group = consumer().ready()
    add(redis, "done")
    group.users()
    (last,) = add(redis, "missed")
    redis.xtrim(STREAM, maxlen=0, approximate=False)
    missed = group.missed("no longer has", acknowledged=False)
    assert missed.last_id == last
    redis.flushall()
    group.ack(missed)
    add(redis, "after")
    group.missed("is new")
    assert group.users() == ["after"]


@pytest.mark.parametrize("command", ["XREADGROUP", "XAUTOCLAIM", "XACK"])
@pytest.mark.parametrize("retried", [True, False])
def test_an_answer_that_is_lost_is_not_passed_over(
    consumer: Make, redis: redis.Redis, monkeypatch: pytest.MonkeyPatch, command: str, retried: bool
) -> None:
    group = consumer(take_over_seconds=0 if command == "XAUTOCLAIM" else 60).ready()
    add(redis, *map(str, range(250)))
    if command == "XAUTOCLAIM":
        redis.xreadgroup("mailer", "mailer-2", {STREAM: ">"}, count=150)
    lost = _lose_one_answer(monkeypatch, command, retried)
    given: list[str] = []
    for _ in range(9):
        with suppress(RedisError):
            group.users(given)
    assert lost == [command]
    assert given == list(map(str, range(250)))
    assert pending(redis) == 0


def test_the_last_answer_before_a_silence_is_not_passed_over(
    consumer: Make, redis: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = consumer().ready()
    add(redis, "last")
    lost = _lose_one_answer(monkeypatch, "XREADGROUP", retried=True)
    assert group.users() == ["last"]
    assert lost


def test_a_poll_without_a_wait_does_not_wait(consumer: Make) -> None:
    group = consumer().ready()
    assert group.poll(0) == []
    assert group.poll(0.0001) == []


def test_what_is_no_stream_is_an_error(consumer: Make, redis: redis.Redis) -> None:
    redis.set(STREAM, "x")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        consumer().poll()


def test_another_prefix(consumer: Make, redis: redis.Redis) -> None:
    redis.xadd("{im}-changes", {"user_id": "alice"})
    group = consumer(prefix="{im}")
    group.missed("is new")
    assert group.users() == ["alice"]


def test_a_poll_that_is_cancelled_loses_nothing(server: Server) -> None:
    async def main() -> None:
        async with redis.asyncio.Redis(port=server.port) as client:
            group = AsyncConsumerGroup(client, "mailer", "mailer-1")
            with pytest.raises(Missed) as raised:
                await group.poll(0.01)
            await group.ack(raised.value)
            waiting = asyncio.create_task(group.poll(5))
            while not any(each["cmd"] == "xreadgroup" for each in server.client.client_list()):
                await asyncio.sleep(0.01)
            waiting.cancel()
            (written,) = add(server.client, "alice")
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert [change.id for change in await group.poll(0.01)] == [written]

    asyncio.run(main())


def _before(monkeypatch: pytest.MonkeyPatch, command: str, do: Callable[[], Any]) -> None:
    """Does something right before a client, blocking or asyncio, sends the command for the first time."""
    done = threading.Event()

    def once(words: Any) -> None:
        if words[0] == command and not done.is_set():
            done.set()
            do()

    for kind in (redis.Redis, redis.asyncio.Redis):
        execute: Any = kind.execute_command

        def first(self: Any, *words: Any, execute: Any = execute, **options: Any) -> Any:
            once(words)
            return execute(self, *words, **options)

        monkeypatch.setattr(kind, "execute_command", first)


def _lose_one_answer(monkeypatch: pytest.MonkeyPatch, command: str, retried: bool) -> list[str]:
    """Breaks the connection once the server has carried out the command.

    retried: redis-py then repeats the command by itself, as its clients do by default.
    """
    lost: list[str] = []
    sent: list[str] = []

    def note(words: Any) -> None:
        if words[0] == command:
            sent.append(command)

    def is_to_be_lost() -> bool:
        if sent and not lost:
            lost.append(command)
            return True
        return False

    patch, kind, async_kind = monkeypatch.setattr, Connection, redis.asyncio.Connection
    send, read = kind.send_command, kind.read_response
    send_async, read_async = async_kind.send_command, async_kind.read_response

    def send_it(self: Any, *words: Any, **options: Any) -> Any:
        note(words)
        return send(self, *words, **options)

    async def send_it_async(self: Any, *words: Any, **options: Any) -> Any:
        note(words)
        return await send_async(self, *words, **options)

    def read_it(self: Any, *arguments: Any, **options: Any) -> Any:
        reply = read(self, *arguments, **options)
        if is_to_be_lost():
            self.disconnect()
            raise _error(retried)
        return reply

    async def read_it_async(self: Any, *arguments: Any, **options: Any) -> Any:
        reply = await read_async(self, *arguments, **options)
        if is_to_be_lost():
            await self.disconnect()
            raise _error(retried)
        return reply

    patch(kind, "send_command", send_it)
    patch(kind, "read_response", read_it)
    patch(async_kind, "send_command", send_it_async)
    patch(async_kind, "read_response", read_it_async)
    return lost


def _error(retried: bool) -> RedisError:
    return RedisConnectionError("cut off") if retried else RedisError("cut off")
