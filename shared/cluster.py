"""A Redis Cluster, seen through redis-py's client made to behave as its `Redis` does.

Three things of redis-py's `RedisCluster` do not suit us (read in 8.1, cluster.py). It connects in its constructor.
It says that nobody is there, or that a slot has no server, with exceptions that are no RedisError. And its pipeline
asks a server for the key of every FCALL (COMMAND GETKEYS), and sends what failed again one by one, each with a
timeout of its own: a primary that hangs would hold up a batch for hours.
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

from redis import Redis, RedisCluster
from redis.commands import CoreCommands
from redis.commands.cluster import RedisClusterCommands
from redis.event import EventDispatcher
from redis.exceptions import (
    AskError,
    ClusterDownError,
    ConnectionError,
    RedisClusterException,
    RedisError,
    TimeoutError,
    TryAgainError,
)

#: Where a command has its key, if not right after its name.
_KEY_AT = {"FCALL": 3, "FCALL_RO": 3}
_Command = tuple[tuple[Any, ...], dict[str, Any]]


@contextmanager
def _as_redis_says() -> Iterator[None]:
    try:
        yield
    except RedisClusterException as error:
        raise ConnectionError(str(error)) from error


class Cluster(RedisClusterCommands):
    """Connects at the first command, retries nothing but follows slots that moved, raises RedisErrors only.

    make: makes redis-py's client, from the hosts in the URL. It is called again when none of the nodes that are
    known by now can be reached: in a container's world all of them may have new addresses.
    """

    _event_dispatcher = EventDispatcher()  # redis-py's commands want one; nothing here uses it

    def __init__(self, make: Callable[[], RedisCluster]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._made: RedisCluster | None = None

    def _client(self) -> RedisCluster:
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made

    def execute_command(self, *args: Any, **options: Any) -> Any:
        with _as_redis_says(), self._or_start_over():
            return self._client().execute_command(*args, **options)  # type: ignore[no-untyped-call]

    def pipeline(self, transaction: bool = False) -> "ScatteredPipeline":
        if transaction:
            raise NotImplementedError("a Cluster has no transactions across its nodes")
        return ScatteredPipeline(self)

    def primaries(self) -> list[Redis]:
        """A client of each primary. Raises RedisError."""
        with _as_redis_says():
            client = self._client()
            return [client.get_redis_connection(node) for node in client.get_primaries()]  # type: ignore[no-untyped-call]

    def scan_iter(self, *arguments: Any, **options: Any) -> Iterator[Any]:
        """As that of Redis, over all primaries. A key whose slot is moved meanwhile may be missed."""
        for server in self.primaries():
            yield from server.scan_iter(*arguments, **options)

    def refresh(self) -> None:
        """Asks the cluster anew which node has which keys. Raises RedisError."""
        with _as_redis_says(), self._or_start_over():
            self._client().nodes_manager.initialize()

    @contextmanager
    def _or_start_over(self) -> Iterator[None]:
        try:
            yield
        except RedisClusterException:
            self.close()
            raise

    def each_at_its_node(self, commands: Sequence[_Command]) -> list[Any]:
        """The reply to each command, or the error that its server replied, in their order.

        Each command has one key. Raises RedisError where a server did not answer; the commands for others were
        carried out nevertheless, so that one lost primary does not hold up everybody's users.
        """
        replies: list[Any] = [None] * len(commands)
        self._send(commands, range(len(commands)), replies)
        if again := [index for index, reply in enumerate(replies) if isinstance(reply, _REDIRECTIONS)]:
            self.refresh()
            self._send(commands, again, replies)
            for index in again:
                if isinstance(replies[index], _REDIRECTIONS):  # its slot is just being moved
                    args, options = commands[index]
                    try:
                        replies[index] = self.execute_command(*args, **options)
                    except RedisError as error:
                        replies[index] = error
        elif any(isinstance(reply, ClusterDownError) for reply in replies):
            self.refresh()
        return replies

    def _send(self, commands: Sequence[_Command], indexes: Sequence[int], replies: list[Any]) -> None:
        with _as_redis_says():
            client = self._client()
            at_node: dict[Any, list[int]] = defaultdict(list)
            for index in indexes:
                args = commands[index][0]
                node = client.get_node_from_key(args[_KEY_AT.get(args[0], 1)])  # type: ignore[no-untyped-call]
                at_node[node].append(index)
            failures: list[RedisError] = []
            for node, mine in at_node.items():
                pipeline = client.get_redis_connection(node).pipeline(transaction=False)
                for index in mine:
                    args, options = commands[index]
                    pipeline.execute_command(*args, **options)  # type: ignore[no-untyped-call]
                try:
                    for index, reply in zip(mine, pipeline.execute(raise_on_error=False), strict=True):
                        replies[index] = reply
                except (ConnectionError, TimeoutError) as error:
                    failures.append(error)
                    if len(failures) == 2:  # a third would take its timeout as well
                        break
        if failures:
            self.refresh()
            raise failures[0]

    def close(self) -> None:
        with self._lock:
            made, self._made = self._made, None
        if made is not None:
            made.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


_REDIRECTIONS = (AskError, TryAgainError)  # MOVED is an AskError, to redis-py


class ScatteredPipeline(CoreCommands):
    """Commands of one key each, sent together: one plain pipeline for each primary that has some of the keys."""

    _event_dispatcher = EventDispatcher()

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._commands: list[_Command] = []

    def __len__(self) -> int:
        return len(self._commands)

    def execute_command(self, *args: Any, **options: Any) -> Self:
        self._commands.append((args, options))
        return self

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        """The replies in the order of the commands; a server's error is one of them, unless it is to be raised."""
        commands, self._commands = self._commands, []
        replies = self._cluster.each_at_its_node(commands)
        if raise_on_error:
            for reply in replies:
                if isinstance(reply, Exception):
                    raise reply
        return replies
