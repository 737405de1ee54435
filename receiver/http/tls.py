"""HTTPS: loads the certificate, and its successors without a restart."""

import asyncio
import logging
import ssl
from collections.abc import Callable
from pathlib import Path

from shared.errors import SettingsError

LOOK_SECONDS = 1.0

log = logging.getLogger("receiver")

#: Identifies the files that are there now: renewal tools replace them, rewrite them, or redirect a link.
_State = tuple[tuple[int, int, int], ...] | None


def make_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """A context that serves with this pair. Raises SettingsError, which names the variable of the wrong file."""
    for variable, path in (("TLS_CERT", certificate), ("TLS_KEY", key)):
        try:
            path.read_bytes()
        except OSError as error:
            raise SettingsError(f"PRESENCE_{variable}: cannot read {path}: {error.strerror}") from None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        ssl.create_default_context(cafile=certificate)
    except ssl.SSLError:
        raise SettingsError(f"PRESENCE_TLS_CERT: {certificate} holds no certificate in PEM form") from None
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            trouble = f"{key} is not the key of the certificate {certificate}"
        else:
            trouble = f"{key} holds no private key in PEM form"
        raise SettingsError(f"PRESENCE_TLS_KEY: {trouble}") from None
    except ValueError as error:
        raise SettingsError(f"PRESENCE_TLS_KEY: {key} {error}") from None
    return context


def _no_password() -> str:
    # Without this, OpenSSL would ask for it at the terminal.
    raise ValueError("is encrypted; give one without a passphrase, which only this program can read")


async def renew(certificate: Path, key: Path, serve_with: Callable[[ssl.SSLContext], None]) -> None:
    """Serves new connections with a changed pair, until it is cancelled. serve_with: takes the pair's context.

    Each pair gets its own context: a context that loads a second pair keeps both if their keys are of different kinds,
    and goes on serving the old one to peers that accept either. A pair that cannot be used is ignored, with a line in
    the log.
    """
    loaded = seen = _state(certificate, key)
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        now = _state(certificate, key)
        # The same twice: one of the two files may be written a moment after the other.
        if now != loaded and now == seen:
            loaded = now
            try:
                serve_with(make_context(certificate, key))
            except (SettingsError, OSError) as error:  # ssl.SSLError is an OSError
                log.error("the changed certificate cannot be used, the old one stays: %s", error)
            else:
                log.info("serving with the changed certificate %s", certificate)
        seen = now


def _state(*paths: Path) -> _State:
    try:
        stats = [path.stat() for path in paths]
    except OSError:
        return None
    return tuple((each.st_ino, each.st_size, each.st_mtime_ns) for each in stats)
