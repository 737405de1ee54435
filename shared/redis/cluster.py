"""A Redis Cluster, through redis-py's client, made to behave like redis-py's `Redis`.

Three properties of redis-py's `RedisCluster` do not suit us (source: cluster.py of 8.1). It connects in its
constructor. If no server answers, or a slot has no server, it raises exceptions that are not RedisErrors. And its
pipeline asks a server for the key of every FCALL (COMMAND GETKEYS), and resends failed commands one by one, each with
its own timeout: a primary that hangs would hold up a batch for hours.
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Self, TypeVar

from redis import Redis, RedisCluster
from redis.cluster import ClusterNode
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

#: The place of the key in a command, if it is not right after the name.
_KEY_AT = {"FCALL": 3, "FCALL_RO": 3}
_Command = tuple[tuple[Any, ...], dict[str, Any]]
T = TypeVar("T")


@contextmanager
def as_redis_errors() -> Iterator[None]:
    """Turns every exception of the library that is not a server's error into ConnectionError: no answer is known."""
    try:
        yield
    except RedisError:
        raise
    except RedisClusterException as error:
        raise ConnectionError(str(error)) from error
    except Exception as error:
        raise ConnectionError(f"redis-py failed: {type(error).__name__}: {error}") from error


class FollowingCluster(RedisCluster):
    """redis-py's client, which also follows ASK to a node that it does not know.

    A primary that was just added is in no table of slots until it has its first whole slot. redis-py 8.1 looks for it
    there and raises AttributeError.
    """

    def __init__(self, **options: Any) -> None:
        #: Nodes that ASK named, by name.
        self.unlisted: dict[str, ClusterNode] = {}
        super().__init__(**options)

    def get_node(self, host: Any = None, port: Any = None, node_name: Any = None) -> Any:
        node = super().get_node(host, port, node_name)  # type: ignore[no-untyped-call]
        if node is None and node_name:
            if node_name not in self.unlisted:
                host, _, port = node_name.rpartition(":")
                self.unlisted[node_name] = ClusterNode(host, int(port))  # type: ignore[no-untyped-call]
            node = self.unlisted[node_name]
        return node


class Cluster(RedisClusterCommands):
    """A `Backend` that connects at the first command and retries nothing, but follows slots that moved.

    It raises only RedisErrors. make: makes redis-py's client from the hosts in the URL. It is called again if no known
    node can be reached: in containers all nodes may have new addresses.
    """

    is_cluster = True
    has_replicas = True
    _event_dispatcher = EventDispatcher()  # redis-py's commands require one; nothing here uses it

    def __init__(self, make: Callable[[], FollowingCluster]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._made: FollowingCluster | None = None

    def client(self) -> FollowingCluster:
        """redis-py's client. Raises RedisClusterException."""
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made

    def execute_command(self, *args: Any, **options: Any) -> Any:
        with as_redis_errors(), self._reconnecting_on_failure():
            return self.client().execute_command(*args, **options)  # type: ignore[no-untyped-call]

    def pipeline(self, transaction: bool = False) -> "ScatteredPipeline":
        if transaction:
            raise NotImplementedError("a Cluster has no transactions across its nodes")
        return ScatteredPipeline(self)

    def _split_command_across_slots(self, command: str, *keys: Any) -> int:
        """DEL, EXISTS and the like, with keys on any nodes; redis-py's own version needs more from its client."""
        pipeline = self.pipeline()
        for key in keys:
            pipeline.execute_command(command, key)
        return sum(pipeline.execute())

    def at_each_primary(self, do: Callable[[Redis], T]) -> list[T]:
        """Calls `do` with a client of each primary; returns the results. Raises RedisError."""
        with self._refreshing_on_error():
            self.client().nodes_manager.initialize()  # else a primary that became a replica would be asked for ever
            return [do(server) for server in self._primaries()]

    def scan_iter(self, *arguments: Any, **options: Any) -> Iterator[Any]:
        """As `Redis.scan_iter`, over all primaries. A key whose slot is moved meanwhile may be missed."""
        with self._refreshing_on_error():
            for server in self._primaries():
                yield from server.scan_iter(*arguments, **options)

    def _primaries(self) -> list[Redis]:
        client = self.client()
        nodes = {node.name: node for node in (*client.unlisted.values(), *client.get_primaries())}  # type: ignore[no-untyped-call]
        return [client.get_redis_connection(node) for node in nodes.values()]

    @contextmanager
    def _refreshing_on_error(self) -> Iterator[None]:
        """Refreshes for the next command if one fails at a primary, which may have become a replica."""
        try:
            with as_redis_errors():
                yield
        except RedisError:
            self.refresh()
            raise

    def refresh(self) -> None:
        """Asks the cluster again which node has which keys. Raises RedisError."""
        with as_redis_errors(), self._reconnecting_on_failure():
            self.client().unlisted.clear()
            self.client().nodes_manager.initialize()

    @contextmanager
    def _reconnecting_on_failure(self) -> Iterator[None]:
        """Drops redis-py's client if it fails by itself, so that the next command makes a new one."""
        try:
            yield
        except RedisError:
            raise
        except Exception:
            self.close()
            raise

    def close(self) -> None:
        with self._lock:
            made, self._made = self._made, None
        if made is not None:
            made.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


_REDIRECTIONS = (AskError, TryAgainError)  # redis-py's MovedError is an AskError


class ScatteredPipeline(CoreCommands):
    """Commands of one key each, sent together: one plain pipeline for each primary that has some of the keys.

    A WAIT at the end goes to all of them that have replicas, and its reply is the least of theirs.
    """

    _event_dispatcher = EventDispatcher()

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._commands: list[_Command] = []
        self._wait: tuple[Any, ...] = ()
        self._confirmed: list[Any] = []

    def __len__(self) -> int:
        return len(self._commands)

    def execute_command(self, *args: Any, **options: Any) -> Self:
        if args[0] == "WAIT":
            self._wait = args
        else:
            self._commands.append((args, options))
        return self

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        """The replies in the order of the commands. Errors are among them unless `raise_on_error` is set.

        If a server does not answer, that error is the reply to each of its commands; the commands for other servers are
        carried out all the same, so one lost primary does not hold up the users on others. Raises RedisError if no
        server is known at all.
        """
        commands, self._commands = self._commands, []
        with as_redis_errors():
            replies = self._execute(commands)
        if self._wait:
            replies.append(_least(self._confirmed))
        self._wait, self._confirmed = (), []
        for reply in replies if raise_on_error else ():
            if isinstance(reply, Exception):
                raise reply
        return replies

    def _execute(self, commands: Sequence[_Command]) -> list[Any]:
        replies: list[Any] = [None] * len(commands)
        self._send(commands, range(len(commands)), replies)
        again = [index for index, reply in enumerate(replies) if isinstance(reply, _REDIRECTIONS)]
        if again or any(isinstance(reply, ClusterDownError) for reply in replies):
            self._cluster.refresh()
        self._send(commands, again, replies)
        for index in again:
            if isinstance(replies[index], _REDIRECTIONS):  # its slot is being moved right now
                args, options = commands[index]
                try:
                    replies[index] = self._cluster.execute_command(*args, **options)
                except RedisError as error:
                    replies[index] = error
        return replies

    def _send(self, commands: Sequence[_Command], indexes: Sequence[int], replies: list[Any]) -> None:
        client = self._cluster.client()
        nodes: dict[str, Any] = {}
        at_node: dict[str, list[int]] = defaultdict(list)
        for index in indexes:
            node = client.get_node_from_key(_key(commands[index]))  # type: ignore[no-untyped-call]
            nodes[node.name] = node
            at_node[node.name].append(index)
        lost: list[RedisError] = []
        for name, mine in at_node.items():
            if len(lost) == 2:  # a third would cost another timeout
                answers: list[Any] = [lost[0]] * len(mine)
            else:
                answers = self._ask(nodes[name], [commands[index] for index in mine])
                lost += [answer for answer in answers[:1] if isinstance(answer, (ConnectionError, TimeoutError))]
            for index, answer in zip(mine, answers, strict=True):
                replies[index] = answer
        if lost:
            with suppress(RedisError):  # the first errors say more
                self._cluster.refresh()

    def _ask(self, node: Any, commands: Sequence[_Command]) -> list[Any]:
        client = self._cluster.client()
        pipeline = client.get_redis_connection(node).pipeline(transaction=False)
        for args, options in commands:
            pipeline.execute_command(*args, **options)  # type: ignore[no-untyped-call]
        has_replica = client.get_node_from_key(_key(commands[0]), replica=True)  # type: ignore[no-untyped-call]
        if self._wait and has_replica:
            pipeline.execute_command(*self._wait)  # type: ignore[no-untyped-call]
        try:
            answers = pipeline.execute(raise_on_error=False)
        except (ConnectionError, TimeoutError) as error:
            return [error] * len(commands)
        self._confirmed += answers[len(commands) :]
        return list(answers[: len(commands)])


def _key(command: _Command) -> Any:
    args, _ = command
    return args[_KEY_AT.get(args[0], 1)]


def _least(confirmed: Sequence[Any]) -> Any:
    """The least of the replies to WAIT; an error counts as less than any number."""
    return min(confirmed, key=lambda reply: -1 if isinstance(reply, Exception) else reply, default=1)
