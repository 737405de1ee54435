"""Connections to Redis: how they are made, and what their errors mean for us."""

from collections.abc import Callable
from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    TimeoutError,
    TryAgainError,
)
from redis.retry import Retry

CONNECT_TIMEOUT_SECONDS = 2.0

_TCP: dict[str, Any] = {"socket_keepalive": True}

_OUTAGES = (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    TimeoutError,
    TryAgainError,
)
# Error codes for which redis-py has no class: a server that cannot persist, lacks replicas or runs
# somebody's endless script. Source: the error table of redis/src/server.c, createSharedObjects().
_OUTAGE_CODES = ("MISCONF", "NOREPLICAS", "BUSY", "NOAUTH", "UNBLOCKED", "MASTERDOWN", "CLUSTERDOWN")


def is_outage(error: Exception) -> bool:
    """True where the server is at fault and later may be better; False where the command is."""
    if isinstance(error, _OUTAGES):
        return True
    return isinstance(error, RedisError) and str(error).startswith(_OUTAGE_CODES)


def connect(url: str, *, timeout: float = 5.0, on_connect: Callable[[Any], None] | None = None) -> Redis:
    """A client that opens its connection at the first command.

    timeout: seconds for one answer, and for a connection where that is less than usual. on_connect: called with each
    new connection instead of redis-py's own greeting, which it should then call. Nothing is retried here: who calls
    knows what may be.
    """
    return Redis.from_url(
        url,
        socket_timeout=timeout,
        **(
            {} if url.startswith("unix:") else {**_TCP, "socket_connect_timeout": min(timeout, CONNECT_TIMEOUT_SECONDS)}
        ),
        retry=Retry(NoBackoff(), 0),
        protocol=2,  # one form of replies, whatever redis-py's own default comes to be
        redis_connect_func=on_connect,
    )
