"""What hosts are: this machine alone, no name at all, or the reason why a program cannot listen."""

import errno
import socket
from ipaddress import IPv6Address, ip_address
from urllib.parse import urlsplit


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on the host."""
    try:
        parsed = ip_address(host)
    except ValueError:
        return host == "localhost"
    return ((parsed.ipv4_mapped or parsed) if isinstance(parsed, IPv6Address) else parsed).is_loopback


def check_name(host: str) -> None:
    """Raises ValueError if Python's resolver takes the host for no name, which it says with no OSError (`a..b`)."""
    try:
        host.encode("idna")
    except UnicodeError:
        raise ValueError("is no host: each part between its dots must have 1 to 63 characters") from None


def check_address(url: str) -> None:
    """Raises ValueError if no connection can be made to the URL's host and port, however the network is."""
    parts = urlsplit(url)
    if not parts.hostname:
        raise ValueError("must have a host")
    check_name(parts.hostname)
    try:
        _ = parts.port
    except ValueError:
        raise ValueError("its port must be a number up to 65535") from None


def is_of_the_host(error: OSError) -> bool:
    """Whether a program cannot listen because of the host, not the port."""
    return isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL
