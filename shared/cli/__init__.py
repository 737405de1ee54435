"""The `presence` command; one file a subcommand."""

import io
import sys

import click
from redis.exceptions import RedisError

from shared import settings
from shared.cli.doctor import doctor
from shared.cli.failed import failed
from shared.cli.forget import forget
from shared.cli.get import get
from shared.cli.running import load_settings
from shared.cli.send import send
from shared.cli.services import receiver, worker
from shared.cli.status import status
from shared.cli.up import up
from shared.cli.watch import watch
from shared.cli.why import why
from shared.errors import PresenceError

#: The commands by what somebody wants to do.
_TASKS = {
    "Run it": (up, receiver, worker),
    "Look who is online": (get, why, watch),
    "See whether all is well, and put it right": (status, doctor, failed, forget),
    "Try it": (send,),
}


class _ByTask(click.Group):
    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for task, commands in _TASKS.items():
            with formatter.section(task):
                formatter.write_dl([(str(each.name), each.get_short_help_str(80)) for each in commands])


@click.group(cls=_ByTask, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="openim-presence-server", prog_name="presence")
def cli() -> None:
    """Who is online in OpenIM, kept in Redis.

    Settings come from PRESENCE_* variables; the README has the table. In a directory where `presence up` runs, they are
    known already. For completion with the Tab key, put this into ~/.bashrc (zsh and fish alike):

    \b
      eval "$(_PRESENCE_COMPLETE=bash_source presence)"

    \b
    Example:
      presence up
    """


for _commands in _TASKS.values():
    for _command in _commands:
        cli.add_command(_command)


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
