"""Redis URLs: redis-py's own, and our two forms with several hosts, for a Cluster and for Sentinels."""

import re
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from redis import ConnectionPool
from redis.connection import parse_url

from shared.addresses import check_name

CLUSTER_PORT = 6379
SENTINEL_PORT = 26379

# Not urlsplit: it takes commas as part of a port, and brackets after a comma as an error.
_SEVERAL = re.compile(r"(rediss?)\+(cluster|sentinel)://(?:([^/?#]*)@)?([^/?#@]*)([^?#]*)(?:\?(.*))?", re.DOTALL)
_HOST = re.compile(
    r"\[(?P<v6>[0-9A-Fa-f:.]+(?:%\w+)?)\](?::(?P<v6_port>\d+))?|(?P<name>[^\s\[\]:]+)(?::(?P<port>\d+))?"
)


#: Options that change nothing on which other code relies; for numbers, their range. All others are refused: with
#: decode_responses, for example, events would be applied and yet count as failed.
_NUMBERS = {
    "db": (0, 10**6),
    "socket_timeout": (2, 60),  # more than a worker waits for a job at a time
    "socket_connect_timeout": (0.1, 60),
    "health_check_interval": (0, 3600),
}
_CERT_REQS = ("none", "optional", "required")
_HARMLESS = {
    *_NUMBERS,
    *("username", "password", "client_name", "socket_keepalive"),
    *("ssl_ca_certs", "ssl_ca_path", "ssl_ca_data", "ssl_certfile", "ssl_keyfile", "ssl_password"),
    *("ssl_cert_reqs", "ssl_check_hostname", "ssl_min_version", "ssl_ciphers"),
}
#: redis-py's client for a Cluster would silently ignore these.
_NOT_FOR_A_CLUSTER = {"health_check_interval", "ssl_min_version", "ssl_ciphers"}


@dataclass(frozen=True, slots=True)
class Address:
    """Where a Redis is, and how to connect to it.

    hosts: nodes of the Cluster, or Sentinels, which are asked for the rest. service: its name at the Sentinels.
    options: of the connections, as redis-py names them. sentinel_options: different ones for connections to Sentinels.
    """

    kind: Literal["single", "cluster", "sentinel"]
    hosts: tuple[tuple[str, int], ...] = ()
    service: str = ""
    tls: bool = False
    options: dict[str, Any] = field(default_factory=dict, repr=False)
    sentinel_options: dict[str, Any] = field(default_factory=dict, repr=False)


def parse(url: str) -> Address:
    """Parses a URL, without connecting. Raises ValueError, which says what the URL should be and shows no password."""
    _check_escapes(url)
    several = _SEVERAL.fullmatch(url)
    if not several:
        return _single(url)
    scheme, kind, credentials, hosts, path, query = several.groups(default="")
    own = {name: value for name, value in parse_qsl(query) if name.startswith("sentinel_")}
    query = urlencode([(name, value) for name, value in parse_qsl(query) if name not in own])
    service, database = _sentinel_path(path) if kind == "sentinel" else ("", _cluster_path(path))
    _check_options(query, kind)
    # redis-py parses everything but the hosts, from a URL of its own form.
    options = _options(f"{scheme}://{credentials and credentials + '@'}host/{database}{query and '?' + query}")
    for name in ("host", "connection_class"):
        options.pop(name, None)
    if kind == "cluster":
        if options.pop("db", 0) or own:
            raise ValueError("a Cluster has only database 0, and no sentinel_ options")
        return Address("cluster", _hosts(hosts, CLUSTER_PORT), "", scheme == "rediss", options)
    if unknown := set(own) - {"sentinel_username", "sentinel_password"}:
        raise ValueError(f"has an unknown option {min(unknown)}; there are sentinel_username and sentinel_password")
    sentinel_options = {name.removeprefix("sentinel_"): value for name, value in own.items()}
    return Address("sentinel", _hosts(hosts, SENTINEL_PORT), service, scheme == "rediss", options, sentinel_options)


def _check_escapes(url: str) -> None:
    """Without this check, a later error would show a piece of a password with such a character, or never come."""
    before, _, query = url.partition("?")
    path = before.partition("://")[2].partition("/")[2]
    ends_early = "@" in path and not before.startswith("unix:")
    has_no_name = any("@" in option.partition("=")[0] for option in query.split("&"))
    if "#" in url or ends_early or has_no_name:
        raise ValueError("in a user or password write / ? # @ and : as %2F %3F %23 %40 and %3A; no other # is allowed")


def _check_options(query: str, kind: str) -> None:
    harmless = _HARMLESS - _NOT_FOR_A_CLUSTER if kind == "cluster" else _HARMLESS
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in harmless:
            shown = "an option" if "@" in query else f"the option {name[:40]!r}"  # it may be half of a password
            allowed = ", ".join(sorted(harmless))
            raise ValueError(f"has {shown}, which is not known to be harmless; allowed are {allowed}")
        if name in _NUMBERS:
            least, most = _NUMBERS[name]
            try:
                fits = least <= float(value) <= most
            except ValueError:
                fits = False
            if not fits:
                raise ValueError(f"its option {name} must be a number from {least} to {most}")
        if name == "ssl_cert_reqs" and value not in _CERT_REQS:
            raise ValueError(f"its option {name} must be {', '.join(_CERT_REQS[:-1])} or {_CERT_REQS[-1]}")
        if name == "client_name" and not re.fullmatch("[!-~]+", value):
            raise ValueError(f"its option {name} may have neither blanks nor characters beyond ASCII")
    if "ssl_keyfile=" in query and "ssl_certfile=" not in query:  # redis-py would fail at each connection
        raise ValueError("its option ssl_keyfile needs ssl_certfile")


def _single(url: str) -> Address:
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise ValueError("must begin with redis://, rediss://, unix://, redis+cluster:// or redis+sentinel://")
    if parts.scheme != "unix" and not (parts.path.strip("/") or "0").isdigit():
        raise ValueError("the number of a database, such as /0, must follow the host")
    if "," in parts.netloc.rpartition("@")[2]:
        raise ValueError("has several hosts; write redis+cluster:// or redis+sentinel://")
    try:
        _ = parts.port
    except ValueError:  # its text shows the port, which may be a piece of a password
        raise ValueError("is not a Redis URL: it must be redis://[user:password@]host:port/db") from None
    if parts.scheme != "unix":
        check_name(unquote(parts.hostname or ""))
    _check_options(parts.query, "single")
    _options(url)
    return Address("single")


def _options(url: str) -> dict[str, Any]:
    try:
        options = parse_url(url)  # type: ignore[no-untyped-call]
        ConnectionPool.from_url(url).make_connection()  # connects to nothing
    except ValueError as error:
        raise ValueError(f"is not a Redis URL: {error}") from None
    except TypeError as error:
        raise ValueError(f"has an option that does not go with its scheme: {error}") from None
    return dict(options)


def _hosts(text: str, default_port: int) -> tuple[tuple[str, int], ...]:
    hosts = []
    for part in text.split(","):
        found = _HOST.fullmatch(part)
        if not found:
            raise ValueError(f"{part!r} is not host:port; separate several by commas")
        port = int(found["port"] or found["v6_port"] or default_port)
        if not 0 < port < 65536:
            raise ValueError(f"{part!r}: a port is from 1 to 65535")
        host = unquote(found["v6"] or found["name"])
        check_name(host)
        hosts.append((host, port))
    return tuple(hosts)


def _cluster_path(path: str) -> str:
    if path not in ("", "/", "/0"):
        raise ValueError("a Cluster has only database 0: only /0 may follow the hosts")
    return "0"


def _sentinel_path(path: str) -> tuple[str, str]:
    service, _, database = path.removeprefix("/").partition("/")
    if not service:
        raise ValueError("the service's name at the Sentinels must follow the hosts, such as /mymaster/0")
    if not (database or "0").isdigit():
        raise ValueError("the number of a database must follow the service, such as /mymaster/0")
    return unquote(service), database or "0"
