"""What errors of Redis mean: is the server at fault, or the command?"""

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
    AskError,  # and MovedError: the cluster changes faster than we can follow
    AuthenticationError,
    BusyLoadingError,
    ClusterError,  # and ClusterDownError
    ConnectionError,  # and MasterNotFoundError: no Sentinel knows a healthy primary
    InvalidResponse,  # Redis 7.0.0 sends an extra empty line after some refusals
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    TimeoutError,
    TryAgainError,
)
# The first words of errors for which redis-py has no class: the server cannot persist, lacks replicas or runs an
# endless script. Source: the error table of redis/src/server.c, createSharedObjects(). The last three have no error
# code: a function was refused as a whole on a replica (Redis 7.0.0), or called a command that our user may not call
# (7.0, later releases). Source: redis/src/script.c, scriptPrepareForRun() and scriptVerifyACL().
_OUTAGES_BEGIN = (
    *("MISCONF", "NOREPLICAS", "BUSY", "NOAUTH", "UNBLOCKED", "MASTERDOWN", "CLUSTERDOWN"),
    "Can not run script with write flag on readonly replica",
    "The user executing the script can't",
    "ACL failure in script",
)


def is_outage(error: Exception) -> bool:
    """True if the server is at fault, so that a later try may succeed; False if the command is."""
    if isinstance(error, _OUTAGES):
        return True
    # In a pipeline, redis-py puts the command before its error.
    text = str(error).rpartition("of pipeline caused error: ")[2]
    return isinstance(error, RedisError) and text.removeprefix("ERR ").startswith(_OUTAGES_BEGIN)
