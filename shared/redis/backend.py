"""Where keys live, whatever it is: one Redis, a primary that Sentinels name, or a Cluster.

`connect` chooses once, by the URL. Everything else asks the client what it needs to know, and not what it is.
"""

from collections.abc import Callable
from typing import TypeVar

from redis import Redis
from redis.sentinel import SentinelConnectionPool

T = TypeVar("T")


class Backend(Redis):
    """One Redis, or the primary that Sentinels name. `shared.redis.cluster.Cluster` has the same methods."""

    #: Whether keys are spread over several servers, so that no step can span them.
    is_cluster = False

    @property
    def has_replicas(self) -> bool:
        """Whether replicas are expected to be there, by the URL."""
        return isinstance(self.connection_pool, SentinelConnectionPool)

    def at_each_primary(self, do: Callable[[Redis], T]) -> list[T]:
        """What it returns for a client of each server that takes writes. Raises RedisError."""
        return [do(self)]

    def refresh(self) -> None:
        """Asks anew which servers take writes, where that can change. Raises RedisError."""
        if isinstance(self.connection_pool, SentinelConnectionPool):
            # Where it is another, redis-py closes the connections as well.
            self.connection_pool.get_master_address()  # type: ignore[no-untyped-call]
