"""Exchanges packed commands for replies, without redis-py's pipelines.

They pack each command in Python, send all of them, and wait for all replies: the server and its client take turns.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from hiredis import pack_command
from redis import Redis
from redis.exceptions import ResponseError

#: How much is sent before the replies to the previous commands are read. These are so short that the server never
#: waits for us to read.
SLICE_BYTES = 32_000


def pack(commands: Iterable[Sequence[Any]]) -> Iterator[tuple[bytes, int]]:
    """Slices of about SLICE_BYTES, each with the number of its commands."""
    slice: list[bytes] = []
    size = 0
    for command in commands:
        packed = pack_command(command)  # type: ignore[arg-type]  # of tuples of any length
        slice.append(packed)
        size += len(packed)
        if size >= SLICE_BYTES:
            yield b"".join(slice), len(slice)
            slice, size = [], 0
    if slice:
        yield b"".join(slice), len(slice)


def exchange(client: Redis, slices: Iterable[tuple[bytes, int]]) -> list[Any]:
    """The replies in the order of the commands; errors of the server are among them.

    client: of a single server. slices: as from `pack`; one is sent before the replies to the one before it are read, so
    that the server works while the next is packed. Raises RedisError if the connection or the server fails; some
    commands may then have been carried out.
    """
    replies: list[Any] = []
    pool = client.connection_pool
    connection = pool.get_connection()
    try:
        unanswered = 0
        for packed, count in slices:
            # Without redis-py's own loop around hiredis' packer, which takes half as long again.
            connection.send_packed_command([packed])  # type: ignore[no-untyped-call]
            replies += [_reply(connection) for _ in range(unanswered)]
            unanswered = count
        replies += [_reply(connection) for _ in range(unanswered)]
    except BaseException:
        connection.disconnect()  # type: ignore[no-untyped-call]  # else later commands would get these replies
        raise
    finally:
        pool.release(connection)
    return replies


def _reply(connection: Any) -> Any:
    try:
        return connection.read_response()
    except ResponseError as error:
        return error
