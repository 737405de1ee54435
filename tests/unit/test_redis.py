"""Which errors are the server's fault, so that a later try may succeed, and which are the command's."""

import pytest
from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    ClusterError,
    ConnectionError,
    DataError,
    InvalidResponse,
    MovedError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TimeoutError,
    TryAgainError,
)
from redis.sentinel import MasterNotFoundError, SlaveNotFoundError

from shared.redis.client import is_outage


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Connection refused"),
        TimeoutError("Timeout reading from socket"),
        BusyLoadingError("Redis is loading the dataset in memory"),
        OutOfMemoryError("command not allowed when used memory > 'maxmemory'"),
        ReadOnlyError("You can't write against a read only replica."),
        MasterNotFoundError("No master found for 'mymaster'"),
        SlaveNotFoundError("No slave found for 'mymaster'"),
        MovedError("42 127.0.0.1:7000"),
        AskError("42 127.0.0.1:7000"),
        TryAgainError("Multiple keys request during rehashing of slot"),
        ClusterDownError("The cluster is down"),
        ClusterError("TTL exhausted."),
        ResponseError("NOREPLICAS Not enough good replicas to write."),
        InvalidResponse('Protocol error, got "\\r" as reply type byte'),
        ResponseError("Can not run script with write flag on readonly replica."),
        ResponseError("The user executing the script can't run this command or subcommand"),
        ResponseError("ACL failure in script: User worker has no permissions to run the 'xadd' command"),
        ResponseError("UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)"),
        ResponseError("Command # 1 (HSET a b c) of pipeline caused error: NOREPLICAS Not enough good replicas"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_server_at_fault_is_told_by_its_error(error: Exception) -> None:
    assert is_outage(error)


@pytest.mark.parametrize(
    "error",
    [
        ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"),
        ResponseError("Command # 1 (HSET NOREPLICAS b c) of pipeline caused error: WRONGTYPE Operation against a key"),
        ResponseError("ERR Function not found"),
        ClusterCrossSlotError("Keys in request don't hash to the same slot"),
        DataError("Invalid input of type: 'NoneType'"),
        ValueError("NOREPLICAS"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_command_at_fault_is_told_by_its_error(error: Exception) -> None:
    assert not is_outage(error)
