"""Puts batches of events onto the queue, with the commands that RQ makes for their jobs.

RQ and redis-py take 0.5 ms of the interpreter, which the requests share, to make and pack the commands for one job.
Most of what they write is the same for each. So they do it once, for a sample, and each batch's values take the place
of the sample's.
"""

import re
import secrets
import zlib
from collections.abc import Iterator, Sequence
from uuid import uuid4

from hiredis import pack_command
from redis.exceptions import ResponseError
from rq import Queue
from rq.job import Job
from rq.utils import now, utcformat

from shared.queue import BatchMeta, data_of, describe_batch, new_batch
from shared.redis.exchange import exchange

#: Less would take three times as long; what it saves is in Redis for a moment only.
_COMPRESSION = 1


class Pusher:
    """queue: of a single server."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        #: Packed commands, each piece with the name of the value that follows it; and how many commands they are.
        self._template: list[tuple[bytes, str]] = []
        self._commands = 0

    def push(self, events: Sequence[bytes], received_at: int, skew_ms: int = 0) -> str:
        """Does what `shared.queue.enqueue_encoded` does; returns the job's id. Raises RedisError."""
        if not self._template:
            self._learn()
        job_id = str(uuid4())
        values = {
            "id": _pack(job_id),
            "key": _pack(Job.key_for(job_id)),
            "data": _pack(zlib.compress(data_of(events), _COMPRESSION)),
            "description": _pack(describe_batch(events)),
            "meta": _pack(self._queue.serializer.dumps(BatchMeta(received_at, len(events), skew_ms).encode())),
            "time": _pack(utcformat(now())),
            "": b"",
        }
        transaction = b"".join([piece + values[name] for piece, name in self._template])
        replies = exchange(self._queue.connection, [(transaction, self._commands)])
        if error := next(_errors(replies), None):
            # A key of a wrong type refuses the id and not the job, so each try would leave a job behind.
            self._queue.connection.delete(Job.key_for(job_id))
            raise error
        return job_id

    def _learn(self) -> None:
        job = new_batch(self._queue, [secrets.token_bytes()], 0)
        with self._queue.connection.pipeline() as pipeline:  # never executed
            self._queue.enqueue_job(job, pipeline=pipeline)
            commands = [("MULTI",), *(command for command, _ in pipeline.command_stack), ("EXEC",)]
        fields = job.to_dict()
        names = {_pack(fields[name]): name for name in ("data", "description", "meta")}
        names |= {_pack(fields[name]): "time" for name in ("created_at", "enqueued_at")}
        names |= {_pack(job.id): "id", _pack(job.key): "key"}
        packed = b"".join(map(pack_command, commands))
        pieces = re.split(b"(%s)" % b"|".join(map(re.escape, names)), packed)
        self._template = [
            (piece, names.get(value, "")) for piece, value in zip(pieces[::2], [*pieces[1::2], b""], strict=True)
        ]
        self._commands = len(commands)


def _pack(value: str | bytes) -> bytes:
    """A value as it is within a packed command."""
    encoded = value.encode() if isinstance(value, str) else value
    return b"$%d\r\n%s\r\n" % (len(encoded), encoded)


def _errors(replies: list[object]) -> Iterator[ResponseError]:
    """A command that is refused makes EXEC fail too, so the first error says why."""
    for reply in replies:
        for each in reply if isinstance(reply, list) else [reply]:
            if isinstance(each, ResponseError):
                yield each
