"""Connections to Redis: how they are made, and what their errors mean for us."""

import re
from collections.abc import Callable
from typing import Any, cast

from redis import Redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterError,
    ConnectionError,
    InvalidResponse,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
    TryAgainError,
)
from redis.retry import Retry
from redis.sentinel import (
    MasterNotFoundError,
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)

from shared.redis.cluster import Cluster, FollowingCluster
from shared.redis.url import Address, parse

CONNECT_TIMEOUT_SECONDS = 2.0
#: For the answer of a Sentinel; they are asked one after the other.
SENTINEL_TIMEOUT_SECONDS = 1.0

_OUTAGES = (
    AskError,  # and MovedError: the cluster is being changed faster than it can be followed
    AuthenticationError,
    BusyLoadingError,
    ClusterError,  # and ClusterDownError
    ConnectionError,  # and MasterNotFoundError: no Sentinel knows a primary that is well
    InvalidResponse,  # Redis 7.0.0 sends an empty line too many after some refusals
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    TimeoutError,
    TryAgainError,
)
# How errors begin for which redis-py has no class: a server that cannot persist, lacks replicas or runs somebody's
# endless script. Source: the error table of redis/src/server.c, createSharedObjects(). The last three have no code of
# their own: a function that is refused as a whole on a replica (Redis 7.0.0), and one that calls a command which our
# user may not call (7.0, later) (redis/src/script.c, scriptPrepareForRun() and scriptVerifyACL()).
_OUTAGES_BEGIN = (
    *("MISCONF", "NOREPLICAS", "BUSY", "NOAUTH", "UNBLOCKED", "MASTERDOWN", "CLUSTERDOWN"),
    "Can not run script with write flag on readonly replica",
    "The user executing the script can't",
    "ACL failure in script",
)


def is_outage(error: Exception) -> bool:
    """True where the server is at fault and later may be better; False where the command is."""
    if isinstance(error, _OUTAGES):
        return True
    # redis-py puts the command before the error of one in a pipeline.
    text = str(error).rpartition("of pipeline caused error: ")[2]
    return isinstance(error, RedisError) and text.removeprefix("ERR ").startswith(_OUTAGES_BEGIN)


class _ReconnectsOnOutage:
    """A connection that is closed after any answer that means an outage.

    An address may lead to another server by now: a Kubernetes Service, HAProxy and managed Redis keep the address of a
    primary when they promote a replica, and leave the old connections on the old primary. Only a new connection finds
    out. It costs little, since whoever got that answer waits before the next try.
    """

    def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return super().read_response(*args, **options)  # type: ignore[misc]
        except ResponseError as error:
            if is_outage(error):
                self.mark_for_reconnect()  # type: ignore[attr-defined]
            raise


class _Plain(_ReconnectsOnOutage, Connection):
    pass


class _TLS(_ReconnectsOnOutage, SSLConnection):
    pass


class _UnixSocket(_ReconnectsOnOutage, UnixDomainSocketConnection):
    pass


class _BehindSentinels(_ReconnectsOnOutage, SentinelManagedConnection):
    pass


class _BehindSentinelsTLS(_ReconnectsOnOutage, SentinelManagedSSLConnection):
    pass


_CONNECTIONS = {"redis": _Plain, "rediss": _TLS, "unix": _UnixSocket}


def connect(url: str, *, timeout: float = 5.0, on_connect: Callable[[Any], None] | None = None) -> Redis:
    """A client that opens its connection at the first command.

    url: as PRESENCE_REDIS_URL. For a Cluster the client is a `shared.redis.cluster.Cluster`, which has the commands of
    Redis; its pipelines are for commands of one key each. timeout: seconds for one answer, and for a connection where
    that is less than usual. on_connect: called with each new connection instead of redis-py's own greeting, which it
    should then call; not on a Cluster. Nothing is retried here: who calls knows what may be. After an answer that
    means an outage (see `is_outage`), READONLY for example, the next command opens a new connection, since the address
    may lead to another server by then. Raises ValueError where the URL is wrong.
    """
    address = parse(url)
    options: dict[str, Any] = {"socket_timeout": timeout, "protocol": 2}  # one form of replies, whatever the default
    if not url.startswith("unix:"):
        options |= {"socket_connect_timeout": min(timeout, CONNECT_TIMEOUT_SECONDS), "socket_keepalive": True}
    if address.kind == "cluster":
        return cast(Redis, Cluster(lambda: _cluster(address, {**options, **address.options})))
    options["redis_connect_func"] = on_connect
    if address.kind == "sentinel":
        return _behind_sentinels(address, {**options, **address.options})
    connection_class = _CONNECTIONS[url.partition(":")[0]]
    return Redis.from_url(url, retry=_once(), connection_class=connection_class, **options)


def refresh_primary(client: Redis) -> bool:
    """False where Sentinels, asked anew, name another server than the client last went to, or cannot tell.

    A primary that was frozen, or is cut off, takes writes for seconds after another was promoted, and loses them. Asks
    nobody where there are no Sentinels.
    """
    pool = client.connection_pool
    if not isinstance(pool, SentinelConnectionPool):
        return True
    before = pool.master_address
    try:
        # Where it is another, redis-py closes the connections as well.
        return bool(pool.get_master_address() == before)  # type: ignore[no-untyped-call]
    except RedisError:
        return False


def _once() -> Retry:
    return Retry(NoBackoff(), 0)


def _cluster(address: Address, options: dict[str, Any]) -> FollowingCluster:
    nodes = [ClusterNode(host, port) for host, port in address.hosts]  # type: ignore[no-untyped-call]
    if address.tls:
        options = {**options, "ssl": True}
    return FollowingCluster(startup_nodes=nodes, retry=_once(), **options)


class _Sentinels(Sentinel):
    def discover_master(self, service_name: str) -> tuple[str, int]:
        try:
            return cast(tuple[str, int], super().discover_master(service_name))  # type: ignore[no-untyped-call]
        except MasterNotFoundError as error:
            # redis-py shows each of its clients with all that they are made of: for a log, the reasons are enough.
            raise MasterNotFoundError(re.sub(r"<redis.*?> - ", "", str(error), flags=re.DOTALL)) from None


def _behind_sentinels(address: Address, options: dict[str, Any]) -> Redis:
    tls = {name: value for name, value in options.items() if name.startswith("ssl_")}
    connection_class = _BehindSentinelsTLS if address.tls else _BehindSentinels
    if address.tls:
        tls["ssl"] = True
    sentinels = {
        **tls,
        **address.sentinel_options,
        "socket_timeout": min(options["socket_timeout"], SENTINEL_TIMEOUT_SECONDS),
        "socket_connect_timeout": min(options["socket_timeout"], SENTINEL_TIMEOUT_SECONDS),
        "protocol": 2,
        "retry": _once(),
    }
    found = _Sentinels(address.hosts, sentinel_kwargs=sentinels)  # type: ignore[no-untyped-call]
    client = found.master_for(  # type: ignore[no-untyped-call]
        address.service, retry=_once(), **{**options, **tls, "connection_class": connection_class}
    )
    return cast(Redis, client)
