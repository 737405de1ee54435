"""Whether OpenIM, as its files say, calls back this receiver. Pure: facts in, findings out."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal
from urllib.parse import SplitResult, quote, unquote, urlsplit

from shared.addresses import is_loopback
from shared.doctor.findings import Check, Finding, Item
from shared.doctor.openim_files import KINDS, NAMES, RELEASES, Callback, Config, Form, Found, Text
from shared.doctor.receiver import Certificate, Reach
from shared.settings import Settings

WHAT = "OpenIM's configuration"
#: These releases send none of the three callbacks.
SILENT_RELEASES = ("3.0.0", "3.1.0", "3.8.0", "3.8.1")
#: The last release that has no config center in etcd (pkg/common/cmd/root.go).
LAST_WITHOUT_CENTER = (3, 8, 3)

_NOTHING = {"", "~", "null", "Null", "NULL"}
_WORDS = dict.fromkeys(("true", "True", "TRUE"), True)
_WORDS |= dict.fromkeys(("false", "False", "FALSE", *_NOTHING), False)
_WEAK = {"1": True, "t": True, "T": True, "0": False, "f": False, "F": False}
_BARE = {"yes": True, "Yes": True, "YES": True, "on": True, "On": True, "ON": True, "y": True, "Y": True}
_BARE |= {"no": False, "No": False, "NO": False, "off": False, "Off": False, "OFF": False, "n": False, "N": False}
#: A number without its underscores, which YAML ignores.
_NUMBER = re.compile(
    r"[-+]?(0x[0-9a-f]+|0o[0-7]+|0b[01]+|(\.[0-9]+|[0-9]+(\.[0-9]*)?)(e[-+]?[0-9]+)?)", re.ASCII | re.IGNORECASE
)
#: Underscores that Go does not take in a text, unlike YAML in a number.
_MISPLACED = re.compile("[-+_]_|_$")
#: What a template leaves to be filled in.
_PLACEHOLDER = re.compile(r"\$\{?\w|\{\{")
#: What Go does not escape in a path.
_IN_PATH = "/%:@!$&'()*+,;=~[]"
_BAD_HOST = re.compile(r"[\^|{}`%\\]")
#: What Go takes in `user:password` (net/url, validUserinfo).
_USER = re.compile(r"[A-Za-z0-9._:~!$&'()*+,;=%@-]*")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


@dataclass(frozen=True, slots=True)
class Target:
    """Where a URL leads. path: without what OpenIM appends. credentials: `user:password`, or ""."""

    scheme: Literal["http", "https"]
    host: str
    port: int
    path: str = ""
    credentials: str = ""

    @property
    def shown(self) -> str:
        """Without what may be secret: credentials and path."""
        return f"{self.scheme}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.host)


@dataclass(frozen=True, slots=True)
class Reached:
    """What answered there, asked from this machine. certificate: as OpenIM verifies it, None without TLS."""

    reach: Reach
    detail: str = ""
    certificate: Certificate | None = None


def target_of(config: Config) -> Target | None:
    """None if the URL leads nowhere, or nobody can tell where."""
    return next((each for each in _target(config) if isinstance(each, Target)), None)


def look(found: Found, reached: dict[Target, Reached], settings: Settings) -> Iterator[Item]:
    """reached: of each target that the files have."""
    for name, error in found.unreadable:
        if name == "config.yaml" and any(config.form == "3.7" for config in found.configs):
            continue  # no release reads it beside webhooks.yml
        yield Finding("P071", f"{name} is not YAML that OpenIM can read: {error}")
    for sentence in found.misplaced:
        yield Finding("P072", sentence)
    if not found.configs:
        yield Check(WHAT, "cannot tell", "no file has what OpenIM reads")
        if not found.unreadable and not found.misplaced:
            yield Finding("P070", "there is neither a webhooks.yml nor a config.yaml with callback: in it")
        return
    if len({config.form for config in found.configs}) > 1:
        names = " and ".join(f"{config.where} (read by {RELEASES[config.form]})" for config in found.configs)
        yield Finding("P070", f"there is more than one: {names}; all of them were looked at")
    yield Check(WHAT)
    yield from _of_release(found)
    because = "its variables IMENV_WEBHOOKS_* override the file; those known here were taken into account"
    if any(config.form == "3.7" for config in found.configs):
        yield Check("the environment of OpenIM", "cannot tell", because)
    for config in found.configs:
        yield from _of_config(config, reached, settings)
    old = [RELEASES[config.form] for config in found.configs if config.form != "3.7"]
    if settings.online_lease_seconds and old:
        yield Finding("P061", f"PRESENCE_ONLINE_LEASE_SECONDS is set, and OpenIM is {old[0]}")


def _of_release(found: Found) -> Iterator[Item]:
    release = found.release.removeprefix("v")
    if release.partition("-")[0] in SILENT_RELEASES:
        yield Finding("P086", f"OpenIM is {release}")
    elif not release and "old 3.8" in found.hints:
        yield Finding("P087", "share.yml has no multiLogin, as those of 3.8.0 and 3.8.1")
    numbers = tuple(int(part) for part in re.findall(r"\d+", release)[:3])
    is_new = len(numbers) < 3 or numbers > LAST_WITHOUT_CENTER
    if is_new and "etcd" in found.hints and any(config.form == "3.7" for config in found.configs):
        yield Check("OpenIM's config center", "cannot tell", "only etcd says whether it is enabled, and what it has")
        name = release or "of an unknown release"
        yield Finding("P088", f"OpenIM {name} uses etcd, where a config center may be enabled")


def _of_config(config: Config, reached: dict[Target, Reached], settings: Settings) -> Iterator[Item]:
    for name in config.overridden:
        yield Finding("P089", f"{name} counts instead of what {config.where} has")
    for name in config.ignored:
        yield Finding("P085", f"{name} is set and counts for nothing: {config.where} has no such key")
    for each in _target(config):
        if isinstance(each, Target):
            yield from _of_target(config, each, reached.get(each), settings)
        else:
            yield each
    yield from _of_callbacks(config)


def _target(config: Config) -> Iterator[Item | Target]:
    """Where the URL leads, and what is wrong with it. A part of it may be a secret, and is not shown."""
    url, name = config.url, f"the URL in {config.where}"
    if url in _NOTHING:
        yield Finding("P073", f"{name} is empty")
        return
    if _PLACEHOLDER.search(url):
        yield Check(WHAT, "cannot tell", f"{name} has a placeholder that is filled in elsewhere")
        yield Finding("P070", f"{name} has a placeholder: this is a template, and not what OpenIM reads")
        return
    if trouble := _trouble(url):
        yield Finding("P074", f"{name} {trouble}")
        return
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    if config.form != "2" and (parts.query or parts.fragment or url.endswith(("?", "#"))):
        yield Finding("P079", f"{name} has a {'query' if '?' in url else 'fragment'}")
    yield Target(
        "https" if scheme == "https" else "http",
        parts.hostname or "",
        parts.port or (443 if scheme == "https" else 80),
        quote(parts.path, safe=_IN_PATH),
        _credentials(parts),
    )


def _trouble(url: str) -> str:
    """Why Go's net/url or net/http refuses it, or "". Python's parser is more lenient."""
    if any(ord(char) < 0x20 or char == "\x7f" for char in url):
        return "has a control character"
    if " " in url:  # Go would take a blank in the path, but this one may have been a tab, which Go refuses
        return "has a blank in it"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "cannot be read: its port is invalid, or / ? # [ ] in a password is not percent-encoded"
    if parts.scheme.lower() not in ("http", "https"):
        return f"begins with {parts.scheme}://" if "://" in url else "has no scheme"
    if not parts.hostname or port == 0:
        return "has port 0" if port == 0 else "has no host"
    bad_user = not _USER.fullmatch(parts.netloc.rpartition("@")[0])
    troubles = {
        "has a character in its host that no host may have": ":" not in parts.hostname
        and _BAD_HOST.search(parts.hostname),
        "has a % without two hex digits": _BAD_ESCAPE.search(parts.netloc + parts.path),
        "has a character in user or password that is not percent-encoded": bad_user,
    }
    return next((trouble for trouble, is_so in troubles.items() if is_so), "")


def _credentials(parts: SplitResult) -> str:
    """As Go sends them."""
    if "@" not in parts.netloc:
        return ""
    return f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"


def _of_target(config: Config, target: Target, reached: Reached | None, settings: Settings) -> Iterator[Item]:
    where = f"the URL in {config.where}, {target.shown},"
    is_ours = reached is not None and reached.reach == "ours"
    prefix = settings.callback_path
    if prefix and not (target.path == prefix or target.path.startswith(f"{prefix}/")):
        yield Finding("P077", f"{where} has another path")
    if settings.basic_auth and not target.credentials:
        yield Finding("P076", f"{where} has no user and password")
    elif settings.basic_auth and target.credentials != settings.basic_auth:
        yield Finding("P076", f"{where} has another user or password")
    speaks = "https" if settings.tls_cert else "http"
    is_wrong_scheme = target.scheme != speaks and not is_ours and not settings.trusted_proxies
    if is_wrong_scheme and (target.is_loopback or target.port == settings.port):
        yield Finding("P078", f"{where} has {target.scheme}, and the receiver speaks {speaks}")
    elif reached:
        yield from _of_reach(where, reached, has_credentials=bool(settings.basic_auth))
    if target.is_loopback:
        if config.is_contained:
            yield Finding("P080", f"{where} is loopback, and OpenIM runs in a container")
        else:
            yield Finding("P081", f"{where} is loopback")


def _of_reach(where: str, reached: Reached, *, has_credentials: bool) -> Iterator[Item]:
    what = "whether OpenIM reaches the receiver"
    if reached.reach in ("silent", "not from here") or (reached.reach == "nobody" and "resolve" in reached.detail):
        yield Check(what, "cannot tell", f"this machine does not reach it: {reached.detail}")
    elif reached.reach == "nobody":
        yield Finding("P075", f"{where} leads nowhere: {reached.detail}")
    elif reached.reach == "another program":
        yield Finding("P075", f"{where} leads to a program that is not a receiver: {reached.detail}")
    elif reached.reach == "wrong credentials" and not has_credentials:  # else that was said already
        yield Finding("P076", f"the receiver at {where} wants other credentials than the URL has")
    if reached.certificate and reached.certificate.trouble:
        yield Finding("P045", f"the certificate shown at {where} does not verify: {reached.certificate.trouble}")


def _of_callbacks(config: Config) -> Iterator[Item]:
    enabled, endless = {}, list[str]()
    for kind, name in zip(KINDS, NAMES[config.form], strict=True):
        callback = config.callbacks[kind]
        if not callback.is_section:
            yield Finding("P085", f"{name} in {config.where} has a value instead of enable: and timeout:")
        switch = _switch(callback, config.form)
        if switch is None:
            yield Finding("P085", f"{name} in {config.where} has an enable that is neither true nor false")
        enabled[kind] = bool(switch)
        if enabled[kind]:
            seconds = _timeout(callback, config.form)
            if seconds is None:
                yield Finding("P085", f"{name} in {config.where} has a timeout that is not a whole number of seconds")
            elif seconds <= 0:
                endless.append(f"{name} ({seconds})")
    if endless:
        yield Finding("P084", f"no timeout in {config.where}: {', '.join(endless)}")
    off = [
        name if config.callbacks[kind].enable else f"{name} (no enable: there)"
        for kind, name in zip(KINDS, NAMES[config.form], strict=True)
        if not enabled[kind]
    ]
    if not enabled["online"] or not enabled["offline"]:
        yield Finding("P082", f"not enabled in {config.where}: {', '.join(off)}")
    elif off:
        yield Finding("P083", f"not enabled in {config.where}: {off[0]}")


def _switch(callback: Callback, form: Form) -> bool | None:
    """Whether it is enabled; None if OpenIM does not start with what is there."""
    text = callback.enable or Text()
    if form != "3.7":  # yaml.v3, into a bool
        return None if text.is_quoted and text in _WORDS else {**_WORDS, **_BARE}.get(text)
    if text in _WEAK or (text in _WORDS and not (text.is_quoted and text in _NOTHING - {""})):
        return {**_WORDS, **_WEAK}[text]  # yaml.v3 into anything, then mapstructure, which is lenient
    number = None if text.is_quoted else _number(text)
    return None if number is None else bool(number)


def _timeout(callback: Callback, form: Form) -> int | None:
    """In seconds; None if OpenIM does not start with it, or ignores it."""
    text = callback.timeout or Text()
    if text.is_quoted:
        seconds = _number_in(text) if form == "3.7" else None
    else:
        seconds = 0 if text in _NOTHING else _number(text)
    return None if seconds is None or seconds >= 2**31 else int(seconds)  # OpenIM cuts off the fraction


def _number(text: str) -> float | None:
    """A number as yaml.v3 reads it where it is not quoted (resolve.go); None for anything else."""
    plain = text.replace("_", "")
    if text.startswith("_") or not _NUMBER.fullmatch(plain):
        return None
    number: float
    try:
        number = int(plain, 8 if re.fullmatch("[-+]?0[0-7]+", plain) else 0)
    except ValueError:  # a fraction, or 08
        number = float(plain)
    return number if abs(number) < 2**64 else None


def _number_in(text: str) -> float | None:
    """A whole number as mapstructure reads it in a text (strconv.ParseInt); None for anything else."""
    number = _number(text or "0")
    return number if isinstance(number, int) and not _MISPLACED.search(text) else None
