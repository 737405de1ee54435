"""redis-py's connections, made to cope with an address that leads to another server, and a resolver that is silent."""

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
    "protected-mode no where only ours can reach it"
)


class _LookUp:
    """Asks the resolver for a name, in a thread: it cannot be told how long to wait, and may take 40 s."""

    _under_way: dict[tuple[str, int], "_LookUp"] = {}  # noqa: RUF012  # one for all: a second thread would wait as well
    _lock = threading.Lock()

    def __init__(self, host: str, port: int) -> None:
        self._name = (host, port)
        self._done = threading.Event()
        self._error: OSError | None = None
        threading.Thread(target=self._run, name=f"look up {host}", daemon=True).start()

    @classmethod
    def begin(cls, host: str, port: int) -> "_LookUp":
        """The one that is under way, or a new one."""
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
            raise OSError(f"the resolver has not said within {seconds:g} s where {self._name[0]} is")
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
    """A connection whose name is looked up within the time that it has for connecting."""

    def _connect(self: Any) -> Any:
        if not _is_address(self.host):
            _LookUp.begin(self.host, self.port).wait(self.socket_connect_timeout)
        return super()._connect()  # type: ignore[misc]  # looks it up again, and now the answer is known


class _ReconnectsOnOutage:
    """A connection that is closed after any answer that means an outage.

    An address may lead to another server by now: a Kubernetes Service, HAProxy and managed Redis keep the address of a
    primary when they promote a replica, and leave the old connections on the old primary. Only a new connection finds
    out. It costs little, since whoever got that answer waits before the next try.
    """

    def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return super().read_response(*args, **options)  # type: ignore[misc]
        except ResponseError as error:
            if is_outage(error):
                self.mark_for_reconnect()  # type: ignore[attr-defined]
            raise


class _SaysWhyItIsRefused:
    """A connection that names protected mode, instead of the reset by which such a server ends every connection.

    The server says so as soon as it has accepted, and closes; what we send meanwhile resets the connection, and its
    words are lost. So we connect once more and only listen.
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
