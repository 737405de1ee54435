"""Settings that are right by themselves, but wrong together."""

from collections.abc import Iterator
from urllib.parse import urlsplit

from shared.addresses import is_loopback
from shared.doctor.findings import Check, Finding, Item
from shared.observe.here import is_everywhere
from shared.settings import Network, Settings

#: OpenIM 3.8.2 and later repeats its online callbacks up to 20 minutes apart, and sends them in a burst.
LEASE_LEAST_SECONDS = 1300
RETENTION_LEAST_SECONDS = 3600


def look(settings: Settings) -> Iterator[Item]:
    yield Check("settings")
    yield from _of_ports(settings)
    yield from _of_access(settings)
    if (host := urlsplit(settings.forward_url).hostname) and _is_receiver(settings, host):
        yield Finding("P006", "PRESENCE_FORWARD_URL leads to the receiver's own port")
    lease, retention = settings.online_lease_seconds, settings.retention_seconds
    if 0 < lease < LEASE_LEAST_SECONDS:
        yield Finding("P060", f"PRESENCE_ONLINE_LEASE_SECONDS is {lease}, less than {LEASE_LEAST_SECONDS:,}")
    if 0 < retention < RETENTION_LEAST_SECONDS:
        yield Finding("P008", f"PRESENCE_RETENTION_SECONDS is {retention}, less than an hour")


def _of_ports(settings: Settings) -> Iterator[Item]:
    if not settings.port:
        yield Finding("P007", "PRESENCE_PORT is 0")
    taken: dict[int, tuple[str, str]] = {}
    for name, host in (("port", "host"), ("admin_port", "admin_host"), ("worker_admin_port", "admin_host")):
        port, address, variable = getattr(settings, name), getattr(settings, host), f"PRESENCE_{name.upper()}"
        other, where = taken.setdefault(port, (variable, address))
        if port and other != variable and (address == where or is_everywhere(address) or is_everywhere(where)):
            yield Finding("P002", f"{other} and {variable} are both {port}")


def _of_access(settings: Settings) -> Iterator[Item]:
    guarded = settings.basic_auth or settings.callback_path or settings.allowed_networks
    if not guarded and not is_loopback(settings.host):
        yield Finding("P003", f"the receiver listens on {settings.host} and takes callbacks from anyone")
    for name in ("allowed_networks", "trusted_proxies"):
        if wide := [network for network in getattr(settings, name) if _is_everybody(network)]:
            yield Finding("P004", f"PRESENCE_{name.upper()} has {wide[0]}")
    is_plain = not settings.tls_cert and not settings.trusted_proxies and not is_loopback(settings.host)
    if settings.basic_auth and is_plain:
        yield Finding("P005", "PRESENCE_BASIC_AUTH is set; neither PRESENCE_TLS_CERT nor PRESENCE_TRUSTED_PROXIES is")


def _is_everybody(network: Network) -> bool:
    return network.prefixlen == 0


def _is_receiver(settings: Settings, host: str) -> bool:
    port = urlsplit(settings.forward_url).port or (443 if settings.forward_url.startswith("https") else 80)
    return port == settings.port and (is_loopback(host) or host == settings.host)
