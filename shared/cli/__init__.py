"""The `presence` command; one file a subcommand."""

import io
import sys

import click
from redis.exceptions import RedisError

from shared import settings
from shared.cli.failed import failed
from shared.cli.forget import forget
from shared.cli.get import get
from shared.cli.running import load_settings
from shared.cli.send import send
from shared.cli.services import receiver, worker
from shared.cli.status import status
from shared.cli.up import up
from shared.cli.watch import watch
from shared.errors import PresenceError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="openim-presence-server", prog_name="presence")
def cli() -> None:
    """Who is online in OpenIM, kept in Redis.

    Settings come from PRESENCE_* variables; the README has the table.
    """


for command in (up, receiver, worker, get, watch, status, failed, forget, send):
    cli.add_command(command)


def main() -> None:
    """Runs `presence`; exit codes: 0 done, 1 could not, 2 wrong usage."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # it may have been closed by whoever started us
            stream.reconfigure(errors="backslashreplace")  # an id may have what the terminal's encoding lacks
    try:
        cli()
    except PresenceError as error:
        sys.exit(f"presence: {error}")
    except RedisError as error:
        url = settings.without_password(load_settings().redis_url)
        sys.exit(f"presence: Redis at {url}: {error} (PRESENCE_REDIS_URL says where it is)")
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has enough
