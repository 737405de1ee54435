"""The environment, read once into one frozen object."""

import os
import re
import unicodedata
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from openim_presence.keys import Keys
from shared.addresses import check_address, check_name
from shared.errors import SettingsError
from shared.logs.text import is_utf8
from shared.redis.url import parse

PREFIX = "PRESENCE_"
DEFAULT_REDIS_URL = "redis://127.0.0.1:6379/0"

#: Settings that do nothing without another one. Alone, some would look like protection and give none.
_NEEDS = {
    "tls_cert": "tls_key",
    "tls_key": "tls_cert",
    "trusted_proxies": "allowed_networks",
    "forward_ours": "forward_url",
    "forward_on_failure": "forward_url",
    "openim_api": "openim_secret",
    "openim_secret": "openim_api",
    "reconcile_seconds": "openim_api",
}

#: What Kubernetes sets in every container for a Service whose name begins with "presence".
_INJECTED = re.compile(r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")
_INJECTED_VALUE = re.compile(r"(tcp|udp|sctp)://")

#: What only the Compose file reads. Each container gets all of .env, and so does a shell that reads it.
COMPOSE_ONLY = ("IMAGE", "WORKERS")

#: The most characters in the file of a secret.
_SECRET_MOST = 65536

_QUOTES = {'"': '"', "'": "'", "\u201c": "\u201d", "\u2018": "\u2019"}

Network = IPv4Network | IPv6Network


def _redis_url(value: str) -> str:
    parse(value)
    return value


def _queue_url(value: str) -> str:
    if parse(value).kind == "cluster":
        raise ValueError("RQ needs one Redis, not a Cluster; give its URL")
    return value


def _host(value: str) -> str:
    inner = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    if ":" in inner or inner != value:
        try:
            IPv6Address(inner)
        except ValueError:
            raise ValueError("must be an address or a name alone; the port is a separate setting") from None
    check_name(inner)
    return inner


def _path_prefix(value: str) -> str:
    value = value.rstrip("/")
    if value and not value.startswith("/"):
        raise ValueError("must begin with a slash")
    if set(value) & set(" ?#"):
        raise ValueError("must be written as in a URL: %20, %3F or %23 for a blank, a question mark or a number sign")
    return value


def _networks(value: str) -> tuple[Network, ...]:
    return tuple(_network(each.strip()) for each in value.split(","))


def _network(text: str) -> Network:
    try:
        network = ip_network(text, strict=False)
        ip_network(text)
    except ValueError as error:
        if str(error).endswith("has host bits set"):
            raise ValueError(f"{text} is an address within a network; the network is {network}") from None
        raise ValueError(f"{text or 'an empty entry'} is not a network, such as 10.0.0.0/8 or 192.0.2.7") from None
    # An IPv4 peer of an IPv6 socket is compared as IPv4.
    if isinstance(network, IPv6Network) and network.prefixlen >= 96 and network.network_address.ipv4_mapped:
        return IPv4Network((network.network_address.ipv4_mapped, network.prefixlen - 96))
    return network


def _credentials(value: str) -> str:
    user, _, password = value.partition(":")
    if not user or not password:
        raise ValueError("must be user:password, neither of them empty")
    return value


def _http_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be http://host or https://host, with a port and a path if there are any")
    check_address(value)
    if parts.query or parts.fragment or not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("may have neither a query nor a fragment; write characters beyond ASCII as %41 and the like")
    return value


def _key_prefix(value: str) -> str:
    if not re.fullmatch("[A-Za-z0-9_.{}-]+", value):
        raise ValueError("may have letters, digits and _ . - { } only")
    if value == "rq":
        raise ValueError("the names of RQ's own keys begin with rq; choose another prefix")
    return value


Host = Annotated[str, AfterValidator(_host)]
Port = Annotated[int, Field(ge=0, le=65535)]
RedisUrl = Annotated[str, AfterValidator(_redis_url), Field(repr=False)]
QueueUrl = Annotated[str, AfterValidator(_queue_url), Field(repr=False)]
Networks = Annotated[tuple[Network, ...], BeforeValidator(_networks)]


class Settings(BaseModel):
    """Every setting, named as its variable without `PRESENCE_`; sizes in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    redis_url: RedisUrl = DEFAULT_REDIS_URL
    queue_url: QueueUrl = Field(
        default_factory=lambda data: data.get("redis_url", DEFAULT_REDIS_URL), validate_default=True
    )
    host: Host = "0.0.0.0"  # noqa: S104  # OpenIM is on another machine or in another container
    port: Port = 10006
    stop_delay_seconds: int = Field(0, ge=0, le=3600)
    processes: int = Field(1, ge=1, le=64)
    admin_host: Host = "127.0.0.1"
    admin_port: Port = 10016
    admin_auth: Annotated[str, AfterValidator(_credentials)] = Field("", repr=False)
    worker_admin_port: Port = 0
    callback_path: Annotated[str, AfterValidator(_path_prefix)] = Field("", repr=False)
    basic_auth: Annotated[str, AfterValidator(_credentials)] = Field("", repr=False)
    allowed_networks: Networks = ()
    trusted_proxies: Networks = ()
    tls_cert: Path | None = None
    tls_key: Path | None = None
    max_body_bytes: int = Field(16384, ge=256)
    forward_url: Annotated[str, AfterValidator(_http_url)] = Field("", repr=False)
    forward_max_bytes: int = Field(10_485_760, ge=256)
    forward_ours: int = Field(0, ge=0, le=1)
    forward_on_failure: Literal["error", "continue"] = "error"
    journal_dir: Path = Path("journal")
    journal_max_bytes: int = Field(1_073_741_824, ge=1)
    journal_fsync: Literal["everysec", "always"] = "everysec"
    key_prefix: Annotated[str, AfterValidator(_key_prefix)] = "presence"
    # Redis rejects larger numbers, and no event could be applied.
    changes_maxlen: int = Field(1_000_000, ge=1, le=10**12)
    online_lease_seconds: int = Field(0, ge=0, le=10**9)
    retention_seconds: int = Field(0, ge=0, le=10**9)
    openim_api: Annotated[str, AfterValidator(_http_url)] = Field("", repr=False)
    openim_secret: str = Field("", repr=False)
    openim_admin: str = "imAdmin"
    reconcile_seconds: int = Field(0, ge=0, le=10**9)
    reconcile_fix: int = Field(1, ge=0, le=1)
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(str.lower)] = "info"
    log_format: Literal["text", "json"] = "text"

    @property
    def has_separate_queue(self) -> bool:
        """Whether presence and the queue are on different servers."""
        return self.redis_url != self.queue_url

    @property
    def keys(self) -> Keys:
        return Keys(self.key_prefix)


#: Settings that may also come from a file, as Docker provides secrets: the variable with _FILE at the end has the path.
SECRETS = tuple(name for name, field in Settings.model_fields.items() if not field.repr)
_FILE = "_FILE"


def is_given(environ: Mapping[str, str], variable: str) -> bool:
    """Whether the variable or the one that names its file is set."""
    return bool(environ.get(variable) or environ.get(variable + _FILE))


def load(environ: Mapping[str, str] = os.environ) -> Settings:
    """Reads `PRESENCE_*`; a variable that is empty counts as not set.

    Raises SettingsError. Its one line names the variable and what it should be, and never shows its value.
    """
    values, variables = {}, {}
    for variable, given in sorted(environ.items()):
        name, value = variable.removeprefix(PREFIX), given
        if name == variable or value == "":
            continue
        if name.endswith(_FILE) and name.removesuffix(_FILE).lower() in SECRETS:
            if environ.get(variable.removesuffix(_FILE)):
                raise SettingsError(f"{variable}: {variable.removesuffix(_FILE)} is set too; keep one of them")
            name, value = name.removesuffix(_FILE), _read_secret(variable, Path(given))
        if name.lower() in Settings.model_fields:
            if trouble := _trouble(name, value):
                raise SettingsError(f"{variable}: {trouble}")
            values[name.lower()], variables[name.lower()] = value, variable
        elif name not in COMPOSE_ONLY and not _INJECTED.fullmatch(name):
            raise SettingsError(f"{variable}: there is no such setting; see docs/settings.md")
    try:
        settings = Settings(**values)  # type: ignore[arg-type]  # pydantic turns the strings into what each is
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = str(first["loc"][0])
        variable = variables.get(name, f"{PREFIX}{name}".upper())
        raise SettingsError(f"{variable}: {first['msg'].removeprefix('Value error, ')}") from None
    for name, needed in _NEEDS.items():
        if getattr(settings, name) != Settings.model_fields[name].default and not getattr(settings, needed):
            raise SettingsError(f"{PREFIX}{name.upper()}: does nothing without {PREFIX}{needed.upper()}; set both")
    return settings


def _read_secret(variable: str, path: Path) -> str:
    """What the file has, without the newline that editors add at the end."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            value = file.read(_SECRET_MOST + 1)
    except OSError as error:
        raise SettingsError(f"{variable}: the file cannot be read: {error.strerror}") from None
    except ValueError:  # or a NUL in the path
        raise SettingsError(f"{variable}: must name a text file in UTF-8") from None
    value = value.removesuffix("\n").removesuffix("\r")
    if not value or len(value) > _SECRET_MOST:
        raise SettingsError(f"{variable}: the file is {'too long for a secret' if value else 'empty'}")
    return value


def _trouble(name: str, value: str) -> str:
    """What is wrong with the value, whichever setting it is of, or ""."""
    if name.endswith("PORT") and _INJECTED_VALUE.match(value):
        service = (PREFIX + name).removesuffix("_PORT").lower().replace("_", "-")
        return (
            f"Kubernetes has set it, for its Service {service}: put enableServiceLinks: false into the pod's spec, "
            "give the Service another name, or set the port yourself"
        )
    if not is_utf8(value):
        return "must be text in UTF-8"
    for end, char in (("begins", value[0]), ("ends", value[-1])):
        if char.isspace() or _is_control(char):
            return f"{end} with {_named(char)}; remove it"
    if control := next(filter(_is_control, value), None):
        return f"has {_named(control)} in it; remove it"
    if len(value) > 1 and _QUOTES.get(value[0]) == value[-1]:
        return f"is in quotes, {_named(value[0])}; remove them"
    return ""


def _is_control(char: str) -> bool:
    """Whether it is a control character or an invisible one, such as a byte order mark."""
    return unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp")


def _named(char: str) -> str:
    usual = {" ": "a blank", "\t": "a tab", "\n": "a newline", "\r": "a carriage return"}
    return f"{usual.get(char) or unicodedata.name(char, 'a control character').lower()} (U+{ord(char):04X})"


def without_password(url: str) -> str:
    """The URL of one Redis or several, as a log may show it."""
    return re.sub(r"^([^:/]+://)(?:[^/?#]*@)?([^?#]*).*", r"\1\2", url, flags=re.DOTALL)
