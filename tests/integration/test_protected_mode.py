"""A server in protected mode, asked from another machine, is named as such."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from redis.exceptions import ConnectionError
from support import Process, Server

from shared.redis.client import connect


def own_address() -> str:
    """An address of this machine that is not loopback: a server takes a client from there for another machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no address but loopback")
        return str(probe.getsockname()[0])


def test_it_is_said_instead_of_a_reset(tmp_path: Path, keep: Callable[[Process], Process]) -> None:
    address = own_address()
    server = Server(tmp_path, bind="0.0.0.0", protected_mode="yes")
    keep(server)
    for _ in range(5):
        with pytest.raises(ConnectionError, match="it is in protected mode"):
            connect(f"redis://{address}:{server.port}/0").ping()
