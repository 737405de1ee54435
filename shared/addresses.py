"""Which hosts are this machine alone."""

from ipaddress import IPv6Address, ip_address


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on the host."""
    try:
        parsed = ip_address(host)
    except ValueError:
        return host == "localhost"
    return ((parsed.ipv4_mapped or parsed) if isinstance(parsed, IPv6Address) else parsed).is_loopback
