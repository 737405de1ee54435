"""redis-py's connections, made to cope with an address that leads to another server, and with a silent resolver."""

import socket
import threading
from typing import Any

from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import ConnectionError, ResponseError
from redis.sentinel import SentinelManagedConnection, SentinelManagedSSLConnection

from shared.redis.errors import is_outage

GREETING_SECONDS = 0.3
_CUT_OFF = ("reset by peer", "Broken pipe", "closed by server")
PROTECTED_MODE = (
    "it is in protected mode and takes no connection from another machine; give it a password (requirepass), or set "
    "protected-mode no if only your own machines can reach it"
)


class _LookUp:
    """Asks the resolver for a name, in a thread: it has no timeout of its own, and may take 40 s."""

    _under_way: dict[tuple[str, int], "_LookUp"] = {}  # noqa: RUF012  # shared: a second thread would only wait as well
    _lock = threading.Lock()

    def __init__(self, host: str, port: int) -> None:
        self._name = (host, port)
        self._done = threading.Event()
        self._error: OSError | None = None
        threading.Thread(target=self._run, name=f"look up {host}", daemon=True).start()

    @classmethod
    def begin(cls, host: str, port: int) -> "_LookUp":
        """The look-up of this name that is under way, or a new one."""
        with cls._lock:
            if (host, port) not in cls._under_way:
                cls._under_way[host, port] = cls(host, port)
            return cls._under_way[host, port]

    def _run(self) -> None:
        try:
            socket.getaddrinfo(*self._name, type=socket.SOCK_STREAM)
        except OSError as error:
            self._error = error
        finally:
            with self._lock:
                del self._under_way[self._name]
            self._done.set()

    def wait(self, seconds: float) -> None:
        """Raises OSError if there is no such name, or no answer in time."""
        if not self._done.wait(seconds):
            raise OSError(f"the resolver has not found {self._name[0]} within {seconds:g} s")
        if self._error:
            raise self._error


def _is_address(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host.partition("%")[0])
        except OSError:
            continue
        return True
    return False


class _LooksUpInTime:
    """A connection that looks up its host's name within the time for connecting."""

    def _connect(self: Any) -> Any:
        if not _is_address(self.host):
            _LookUp.begin(self.host, self.port).wait(self.socket_connect_timeout)
        return super()._connect()  # type: ignore[misc]  # looks it up again, when the answer is known


class _ReconnectsOnOutage:
    """A connection that is closed after any answer that means an outage.

    The address may lead to another server by now. A Kubernetes Service, HAProxy and managed Redis keep the address of a
    primary when they promote a replica, and leave the old connections on the old primary; only a new connection finds
    the new one. It costs little, since callers that get such an answer wait before the next try.
    """

    def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return super().read_response(*args, **options)  # type: ignore[misc]
        except ResponseError as error:
            if is_outage(error):
                self.mark_for_reconnect()  # type: ignore[attr-defined]
            raise


class _SaysWhyItIsRefused:
    """A connection whose error names protected mode, and not the reset with which such a server ends each connection.

    The server says so as soon as it has accepted, and closes. What we send meanwhile resets the connection, and its
    message is lost. So we connect once more and only listen.
    """

    def connect(self: Any) -> None:
        try:
            super().connect()  # type: ignore[misc]
        except ConnectionError as error:
            if any(words in str(error) for words in _CUT_OFF) and self._greeting().startswith(b"-DENIED"):
                raise ConnectionError(PROTECTED_MODE) from None
            raise

    def _greeting(self: Any) -> bytes:
        try:
            with socket.create_connection((self.host, self.port), GREETING_SECONDS) as heard:
                return heard.recv(100)
        except OSError:
            return b""


class Plain(_SaysWhyItIsRefused, _ReconnectsOnOutage, _LooksUpInTime, Connection):
    pass


class TLS(_ReconnectsOnOutage, _LooksUpInTime, SSLConnection):
    pass


class UnixSocket(_ReconnectsOnOutage, UnixDomainSocketConnection):
    pass


class BehindSentinels(_ReconnectsOnOutage, _LooksUpInTime, SentinelManagedConnection):
    pass


class BehindSentinelsTLS(_ReconnectsOnOutage, _LooksUpInTime, SentinelManagedSSLConnection):
    pass


class ToNode(_LooksUpInTime, Connection):
    """To one node of a Cluster, which redirects by itself: an answer such as MOVED costs no connection."""


class ToNodeTLS(_LooksUpInTime, SSLConnection):
    """The same."""
