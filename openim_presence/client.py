"""The clients that this package takes, and one way to talk to both kinds.

An operation of several commands is a generator that yields each command and is sent its reply. `run` and `run_async`
carry it out, so there is one copy of the logic.
"""

from collections.abc import Generator
from typing import Any, TypeVar

from redis import Redis, RedisCluster
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio import RedisCluster as AsyncRedisCluster
from redis.client import NEVER_DECODE
from redis.exceptions import RedisError

Client = Redis | RedisCluster
AsyncClient = AsyncRedis | AsyncRedisCluster

#: Replies are bytes, whatever the client's decode_responses says: one bad byte must not cost a whole reply.
AS_BYTES: dict[str, Any] = {NEVER_DECODE: True}

Command = tuple[str | int, ...]
T = TypeVar("T")
#: Replies are as redis-py parses them. A RedisError is raised at the yield of the command.
Steps = Generator[Command, Any, T]


def run(client: Client, steps: Steps[T]) -> T:
    """What the steps return. Raises what they raise."""
    try:
        command = next(steps)
        while True:
            try:
                reply = client.execute_command(*command, **_options(command))  # type: ignore[no-untyped-call]
            except RedisError as error:
                command = steps.throw(error)
            else:
                command = steps.send(reply)
    except StopIteration as done:
        result: T = done.value
        return result


async def run_async(client: AsyncClient, steps: Steps[T]) -> T:
    """As `run`."""
    try:
        command = next(steps)
        while True:
            try:
                reply = await client.execute_command(*command, **_options(command))
            except RedisError as error:
                command = steps.throw(error)
            else:
                command = steps.send(reply)
    except StopIteration as done:
        result: T = done.value
        return result


def _options(command: Command) -> dict[str, Any]:
    # redis-py parses the two forms of XPENDING differently, and only its own method says which one it is.
    return AS_BYTES | ({"parse_detail": True} if command[0] == "XPENDING" else {})
