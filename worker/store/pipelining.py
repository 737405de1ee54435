"""Sends commands while replies to earlier ones come in: the next are packed while the server works.

redis-py's pipeline packs all of its commands, sends them, and waits for all replies: worker and server take turns.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from hiredis import pack_command
from redis import Redis
from redis.exceptions import ResponseError

#: How much is sent before the replies to the previous commands are read. These are so short that the server never
#: waits for us to read.
SLICE_BYTES = 32_000


def execute(client: Redis, commands: Iterable[Sequence[Any]]) -> list[Any]:
    """The replies in the order of the commands; errors of the server are among them.

    client: of a single server. Raises RedisError if the connection or the server fails; some commands may then have
    been carried out.
    """
    replies: list[Any] = []
    pool = client.connection_pool
    connection = pool.get_connection()
    try:
        unanswered = 0
        for slice in _slices(commands):
            # Without redis-py's own loop around hiredis' packer, which takes half as long again.
            connection.send_packed_command([b"".join(slice)])  # type: ignore[no-untyped-call]
            replies += [_reply(connection) for _ in range(unanswered)]
            unanswered = len(slice)
        replies += [_reply(connection) for _ in range(unanswered)]
    except BaseException:
        connection.disconnect()  # type: ignore[no-untyped-call]  # else later commands would get these replies
        raise
    finally:
        pool.release(connection)
    return replies


def _slices(commands: Iterable[Sequence[Any]]) -> Iterator[list[bytes]]:
    slice: list[bytes] = []
    size = 0
    for command in commands:
        packed = pack_command(command)  # type: ignore[arg-type]  # of tuples of any length
        slice.append(packed)
        size += len(packed)
        if size >= SLICE_BYTES:
            yield slice
            slice, size = [], 0
    if slice:
        yield slice


def _reply(connection: Any) -> Any:
    try:
        return connection.read_response()
    except ResponseError as error:
        return error
