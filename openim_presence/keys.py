"""The names of all Redis keys that this project writes; RQ names its own (`rq:*`). No other module builds a name.

Other programs may rely on those that docs/redis-keys.md promises; only the servers use the rest.
"""

from dataclasses import dataclass

DEFAULT_PREFIX = "presence"


@dataclass(frozen=True, slots=True)
class Keys:
    """The names under one prefix (`PRESENCE_KEY_PREFIX`)."""

    prefix: str

    def user(self, user_id: str) -> str:
        """The hash of one user. Only users' keys begin with `prefix:`."""
        return f"{self.prefix}:{user_id}"

    def user_id(self, key: str) -> str:
        """The user whose hash has that key."""
        return key.removeprefix(f"{self.prefix}:")

    @property
    def changes(self) -> str:
        """The stream of status changes."""
        return f"{self.prefix}-changes"

    @property
    def stats(self) -> str:
        """The hash of counters."""
        return f"{self.prefix}-stats"

    @property
    def leases(self) -> str:
        """The sorted set of users by the end of their earliest lease."""
        return f"{self.prefix}-leases"

    @property
    def ignored(self) -> str:
        """The stream of the newest events that changed nothing."""
        return f"{self.prefix}-ignored"

    @property
    def receivers(self) -> str:
        """The hash of what each receiver process reports; on the queue's Redis."""
        return f"{self.prefix}-receivers"

    @property
    def gateways(self) -> str:
        """The hash of which batches came from OpenIM's gateway processes; on the queue's Redis."""
        return f"{self.prefix}-gateways"

    @property
    def sweep(self) -> str:
        """The hash of what the sweep of leases must remember; on the queue's Redis."""
        return f"{self.prefix}-sweep"

    @property
    def sweeper(self) -> str:
        """Which worker has the turn to sweep; on the queue's Redis."""
        return f"{self.prefix}-sweeper"

    @property
    def reconcile(self) -> str:
        """The hash of the results of comparisons with OpenIM; on the queue's Redis."""
        return f"{self.prefix}-reconcile"

    @property
    def reconcile_todo(self) -> str:
        """The list of users who are still to be compared with OpenIM; on the queue's Redis."""
        return f"{self.prefix}-reconcile-todo"

    @property
    def doubtful(self) -> str:
        """The sorted set of users about whom OpenIM will be asked, by the time of that; on the queue's Redis."""
        return f"{self.prefix}-doubtful"

    @property
    def reconciler(self) -> str:
        """Which worker has the turn to compare with OpenIM; on the queue's Redis."""
        return f"{self.prefix}-reconciler"

    @property
    def queue(self) -> str:
        """The name of the RQ queue; RQ puts it at `rq:queue:<name>`."""
        return self.prefix
