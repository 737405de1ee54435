"""Checks who may send callbacks: the peer's network, then Basic credentials. Pure: no sockets, no clock.

docs/access.md says how each OpenIM carries the credentials.
"""

import binascii
import hashlib
import hmac
import re
from base64 import b64decode
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address

from receiver.callback import Refused
from shared.addresses import is_loopback
from shared.settings import Network, Settings

Address = IPv4Address | IPv6Address

_WITH_PORT = re.compile(r"(?P<v4>[0-9.]+):[0-9]{1,5}|\[(?P<v6>[^]]+)](:[0-9]{1,5})?")


class Access:
    """The checks that are set; `make` says whether there are any."""

    def __init__(self, allowed: Sequence[Network], trusted: Sequence[Network], credentials: str) -> None:
        self._allowed = allowed
        self._trusted = trusted
        self._credentials = _digest(credentials.encode()) if credentials else b""

    def check(self, peer: str, forwarded: Sequence[str], authorization: str | None) -> str:
        """The address of the sender. Raises Refused (403 or 401).

        peer: the address at the other end of the connection. forwarded: each X-Forwarded-For line.
        authorization: the header's value.
        """
        if self._allowed:
            client, named = client_of(peer, forwarded, self._trusted)
            if client is None or not within(client, self._allowed):
                raise _forbidden(client, named)
            peer = str(client)
        if self._credentials and not hmac.compare_digest(_digest(_given(authorization)), self._credentials):
            raise _unauthorized()
        return peer


def make(settings: Settings) -> Access | None:
    """The checks; None if neither networks nor credentials are set, so that they cost nothing."""
    if settings.allowed_networks or settings.basic_auth:
        return Access(settings.allowed_networks, settings.trusted_proxies, settings.basic_auth)
    return None


def is_open(settings: Settings) -> bool:
    """True if other machines can reach the receiver and no setting keeps any of them out."""
    guarded = settings.allowed_networks or settings.basic_auth or settings.callback_path
    return not guarded and not is_loopback(settings.host)


def client_of(peer: str | None, forwarded: Sequence[str], trusted: Sequence[Network]) -> tuple[Address | None, str]:
    """The sender: the first address of X-Forwarded-For, from the right, that is not a trusted proxy's.

    Each proxy appends the address of its peer, so everything left of the first untrusted one is only a claim. Returns
    the address, None if a trusted proxy names something that is not an address, and the text that named it.
    """
    named = peer or ""
    client = address(named)
    if not trusted or not forwarded:
        return client, named
    for entry in reversed(",".join(forwarded).split(",")):
        if client is None or not within(client, trusted):
            break
        named = entry.strip(" \t")
        client = address(_without_port(named))
    return client, named


def address(text: str) -> Address | None:
    """The address, as IPv4 if it is mapped into IPv6; None if the text is not an address."""
    try:
        parsed = ip_address(text)
    except ValueError:
        return None
    return (parsed.ipv4_mapped or parsed) if isinstance(parsed, IPv6Address) else parsed


def _without_port(entry: str) -> str:
    """An address as proxies write it: those of Azure and IIS add the port, and brackets around IPv6."""
    found = _WITH_PORT.fullmatch(entry)
    return (found["v6"] or found["v4"]) if found else entry


def within(client: Address, networks: Sequence[Network]) -> bool:
    return any(client in network for network in networks)


def _given(authorization: str | None) -> bytes:
    """`user:password` of a Basic header; empty for anything else, which no setting equals."""
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return b""
    try:
        return b64decode(token.strip(" "), validate=True)
    except (binascii.Error, ValueError):
        return b""


# A new one each time: an exception raised twice keeps every frame that it went through, and the request with it.


def _forbidden(client: Address | None, named: str) -> Refused:
    if client is None:
        trouble = f"X-Forwarded-For: {named[:60]!a} is not an address"
    else:
        trouble = f"PRESENCE_ALLOWED_NETWORKS: {client} is in none of them"
    return Refused(403, "callbacks are not taken from this address", trouble)


def _unauthorized() -> Refused:
    return Refused(401, "callbacks must carry the configured user and password", "Authorization: absent or wrong")


def _digest(credentials: bytes) -> bytes:
    # compare_digest takes as long as its shorter side; all digests have the same length.
    return hashlib.sha256(credentials).digest()
