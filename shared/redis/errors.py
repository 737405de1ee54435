"""What errors of Redis mean for us: whether the server is at fault, or the command."""

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
    TimeoutError,
    TryAgainError,
)

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
    """True if the server is at fault and later may be better; False if the command is."""
    if isinstance(error, _OUTAGES):
        return True
    # redis-py puts the command before the error of one in a pipeline.
    text = str(error).rpartition("of pipeline caused error: ")[2]
    return isinstance(error, RedisError) and text.removeprefix("ERR ").startswith(_OUTAGES_BEGIN)
