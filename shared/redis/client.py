"""Makes clients of Redis from a URL: for one server, a primary behind Sentinels, or a Cluster."""

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

from redis import ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.exceptions import RedisError
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool

from shared.redis.backend import Backend
from shared.redis.cluster import Cluster, FollowingCluster
from shared.redis.connections import TLS, BehindSentinels, BehindSentinelsTLS, Plain, ToNode, ToNodeTLS, UnixSocket
from shared.redis.errors import is_outage
from shared.redis.url import Address, parse

__all__ = ["connect", "is_outage", "refresh_primary"]

CONNECT_TIMEOUT_SECONDS = 2.0
#: The time for a Sentinel's answer; Sentinels are asked one after the other.
SENTINEL_TIMEOUT_SECONDS = 1.0

_CONNECTIONS = {"redis": Plain, "rediss": TLS, "unix": UnixSocket}


def connect(url: str, *, timeout: float = 5.0, on_connect: Callable[[Any], None] | None = None) -> Backend:
    """A client that opens its connection at the first command.

    url: as PRESENCE_REDIS_URL. For a Cluster the client is a `shared.redis.cluster.Cluster`, which has the commands of
    Redis; its pipelines are for commands of one key each. timeout: seconds for one answer, and for connecting if that
    is less than CONNECT_TIMEOUT_SECONDS. on_connect: called with each new connection instead of redis-py's own
    greeting, which it should then call; not on a Cluster. Nothing is retried here: only the caller knows what may be
    repeated. After an answer that means an outage (see `is_outage`), READONLY for example, the next command opens a new
    connection, since the address may lead to another server by then. Raises ValueError if the URL is wrong.
    """
    address = parse(url)
    options: dict[str, Any] = {"socket_timeout": timeout, "protocol": 2}  # else the form of replies could change
    if not url.startswith("unix:"):
        options |= {"socket_connect_timeout": min(timeout, CONNECT_TIMEOUT_SECONDS), "socket_keepalive": True}
    if address.kind == "cluster":
        return cast(Backend, Cluster(lambda: _cluster(address, {**options, **address.options})))
    options["redis_connect_func"] = on_connect
    if address.kind == "sentinel":
        return _behind_sentinels(address, {**options, **address.options})
    connection_class = _CONNECTIONS[url.partition(":")[0]]
    return cast(Backend, Backend.from_url(url, retry=_once(), connection_class=connection_class, **options))


def find_primary(client: Redis) -> Literal["same", "another", "unknown"]:
    """Asks the Sentinels again whether the primary is still the server that the client last went to.

    "unknown" if none of them can be asked. A primary that was frozen or is cut off takes writes for seconds after
    another was promoted, and loses them. Without Sentinels the server is always the same.
    """
    pool = client.connection_pool
    if not isinstance(pool, SentinelConnectionPool):
        return "same"
    before, pool.sentinel_manager.knew_of_it = pool.master_address, False
    try:
        # If it is another, redis-py also closes the connections.
        address = pool.get_master_address()  # type: ignore[no-untyped-call]
    except RedisError:
        return "another" if pool.sentinel_manager.knew_of_it else "unknown"
    return "same" if address == before else "another"


def refresh_primary(client: Redis) -> bool:
    """Asks the Sentinels again; False if they name another server than the client last went to, or cannot tell."""
    return find_primary(client) == "same"


def _once() -> Retry:
    return Retry(NoBackoff(), 0)


def _cluster(address: Address, options: dict[str, Any]) -> FollowingCluster:
    nodes = [ClusterNode(host, port) for host, port in address.hosts]  # type: ignore[no-untyped-call]
    # redis-py 8.1 takes a connection class only with a URL; it uses the nodes all the same.
    first = f"redis://[{nodes[0].host}]:{nodes[0].port}" if ":" in nodes[0].host else f"redis://{nodes[0].name}"
    connection_class = ToNodeTLS if address.tls else ToNode
    return FollowingCluster(
        url=first, startup_nodes=nodes[1:], retry=_once(), connection_class=connection_class, **options
    )


class _Sentinels(Sentinel):
    #: Whether one of them has said anything about the service, even that it is down.
    knew_of_it = False

    def check_master_state(self, state: dict[str, Any], service_name: str) -> bool:
        self.knew_of_it = True
        return bool(super().check_master_state(state, service_name))  # type: ignore[no-untyped-call]

    def __init__(self, hosts: Sequence[tuple[str, int]], options: dict[str, Any]) -> None:
        super().__init__([])  # type: ignore[no-untyped-call]
        self.sentinels = [Redis.from_pool(ConnectionPool(host=host, port=port, **options)) for host, port in hosts]

    def discover_master(self, service_name: str) -> tuple[str, int]:
        try:
            return cast(tuple[str, int], super().discover_master(service_name))  # type: ignore[no-untyped-call]
        except MasterNotFoundError as error:
            # redis-py shows each client with all its options; a log needs only the reasons.
            raise MasterNotFoundError(re.sub(r"<redis.*?> - ", "", str(error), flags=re.DOTALL)) from None


def _behind_sentinels(address: Address, options: dict[str, Any]) -> Backend:
    tls = {name: value for name, value in options.items() if name.startswith("ssl_")}
    sentinels = {
        **tls,
        **address.sentinel_options,
        "socket_timeout": min(options["socket_timeout"], SENTINEL_TIMEOUT_SECONDS),
        "socket_connect_timeout": min(options["socket_timeout"], SENTINEL_TIMEOUT_SECONDS),
        "protocol": 2,
        "retry": _once(),
        "connection_class": TLS if address.tls else Plain,
    }
    found = _Sentinels(address.hosts, sentinels)
    connection_class = BehindSentinelsTLS if address.tls else BehindSentinels
    client = found.master_for(  # type: ignore[no-untyped-call]
        address.service, Backend, retry=_once(), connection_class=connection_class, **options
    )
    return cast(Backend, client)
