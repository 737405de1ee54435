"""Where keys live: one Redis, a primary that Sentinels name, or a Cluster.

`connect` chooses once, by the URL. All other code asks the client what it can do, not what it is.
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
        """Whether the URL lets one expect replicas."""
        return isinstance(self.connection_pool, SentinelConnectionPool)

    def at_each_primary(self, do: Callable[[Redis], T]) -> list[T]:
        """Calls `do` with a client of each server that takes writes; returns the results. Raises RedisError."""
        return [do(self)]

    def refresh(self) -> None:
        """Asks again which servers take writes, if that can change. Raises RedisError."""
        if isinstance(self.connection_pool, SentinelConnectionPool):
            # If it is another, redis-py also closes the connections.
            self.connection_pool.get_master_address()  # type: ignore[no-untyped-call]
