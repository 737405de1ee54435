"""Sends commands while replies to earlier ones come in: the next are packed while the server works.

redis-py's pipeline packs all of its commands, sends them, and waits for all replies: worker and server take turns.
"""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from hiredis import pack_command
from redis import Redis
from redis.exceptions import ResponseError

#: How many commands are sent before the replies to the previous ones are read. A reply is some ten bytes, so the server
#: never waits for us to read.
SLICE_COMMANDS = 250


def execute(client: Redis, commands: Iterable[Sequence[Any]]) -> list[Any]:
    """The replies in the order of the commands; errors of the server are among them.

    client: of a single server. Raises RedisError if the connection or the server fails; some commands may then have
    been carried out.
    """
    replies: list[Any] = []
    remaining = iter(commands)
    pool = client.connection_pool
    connection = pool.get_connection()
    try:
        unanswered = 0
        while some := list(islice(remaining, SLICE_COMMANDS)):
            connection.send_packed_command([_packed(some)])  # type: ignore[no-untyped-call]
            replies += [_reply(connection) for _ in range(unanswered)]
            unanswered = len(some)
        replies += [_reply(connection) for _ in range(unanswered)]
    except BaseException:
        connection.disconnect()  # type: ignore[no-untyped-call]  # else later commands would get these replies
        raise
    finally:
        pool.release(connection)
    return replies


def _packed(commands: Iterable[Sequence[Any]]) -> bytes:
    """By hiredis' packer without redis-py's loop around it, which takes half as long again."""
    return b"".join(map(pack_command, commands))  # type: ignore[arg-type]  # of tuples of any length


def _reply(connection: Any) -> Any:
    try:
        return connection.read_response()
    except ResponseError as error:
        return error
