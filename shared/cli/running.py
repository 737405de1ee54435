"""What a running `presence up` tells commands that run in its directory.

It may use another port than 6379, and have settings that another terminal does not have.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import click

from shared import settings
from shared.cli.embedded import AOF
from shared.errors import SettingsError

_FILE = "up.json"
_LOCK = "lock"


@contextmanager
def hold(data: Path) -> Iterator[None]:
    """Locks the data directory: two servers on one append-only file would ruin it. Raises SettingsError."""
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)  # it names users
        file = (data / _LOCK).open("w")
    except OSError as error:
        raise SettingsError(
            f"{data} cannot be written: {error.strerror}; run `presence up` in a directory that can"
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SettingsError("another `presence up` is running in this directory") from None
        (data / _FILE).unlink(missing_ok=True)  # left by one that was killed
        yield
        (data / _FILE).unlink(missing_ok=True)


def publish(data: Path, environment: Mapping[str, str]) -> None:
    """Writes down the settings, readable only by this user, since passwords may be among them."""
    ours = {name: value for name, value in environment.items() if name.startswith(settings.PREFIX)}
    descriptor = os.open(data / _FILE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w") as file:  # noqa: PTH123  # with that mode from the first moment on
        json.dump(ours, file)


def load_settings() -> settings.Settings:
    """The settings in the environment and, unless it names a Redis, of a `presence up` that runs in this directory.

    Raises SettingsError.
    """
    given = {name: value for name, value in os.environ.items() if value}
    if settings.is_given(given, "PRESENCE_REDIS_URL") or settings.is_given(given, "PRESENCE_QUEUE_URL"):
        return settings.load(given)
    return settings.load({**_published(Path("data")), **given})


def _published(data: Path) -> dict[str, str]:
    try:
        with (data / _LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        pass  # a `presence up` holds it, so what it has written is current
    except OSError:
        return {}
    else:
        if (data / AOF).is_dir():
            _say_that_it_has_ended()
        return {}
    try:
        said = json.loads((data / _FILE).read_text())
    except (OSError, ValueError):
        return {}
    return {str(name): str(value) for name, value in said.items()} if isinstance(said, dict) else {}


@cache
def _say_that_it_has_ended() -> None:
    """Once: whoever relies on its settings would else be told about another Redis."""
    where = settings.DEFAULT_REDIS_URL
    click.echo(f"presence: no `presence up` runs in this directory now, so this is about {where}", err=True)
