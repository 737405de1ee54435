"""The `presence` command; one file a subcommand."""

import errno
import io
import os
import sys

import click
from redis.exceptions import RedisError

from shared import settings
from shared.cli.doctor import doctor
from shared.cli.failed import failed
from shared.cli.forget import forget
from shared.cli.get import get
from shared.cli.reconcile import reconcile
from shared.cli.running import load_settings
from shared.cli.send import send
from shared.cli.services import receiver, worker
from shared.cli.status import status
from shared.cli.up import up
from shared.cli.watch import watch
from shared.cli.why import why
from shared.errors import PresenceError

#: A disk or a quota is full.
_FULL = (errno.ENOSPC, errno.EDQUOT)

#: The commands, grouped by task.
_TASKS = {
    "Run it": (up, receiver, worker),
    "See who is online": (get, why, watch),
    "Check the system, and correct it": (status, doctor, reconcile, failed, forget),
    "Try it": (send,),
}


class _ByTask(click.Group):
    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for task, commands in _TASKS.items():
            with formatter.section(task):
                # The whole first sentence: click would cut it off at the end of the line.
                formatter.write_dl([(str(each.name), each.get_short_help_str(200)) for each in commands])


@click.group(cls=_ByTask, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="openim-presence-server", prog_name="presence")
def cli() -> None:
    """Keeps in Redis who is online in OpenIM.

    Settings come from PRESENCE_* variables; docs/settings.md has the table. In a directory where `presence up` runs,
    commands use its settings. For completion with the Tab key, put this into ~/.bashrc (likewise for zsh and fish):

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
        if isinstance(stream, io.TextIOWrapper):  # the parent process may have closed it
            stream.reconfigure(errors="backslashreplace")  # an id may have characters that the encoding lacks
    try:
        cli()
    except PresenceError as error:
        sys.exit(f"presence: {error}")
    except RedisError as error:
        url = settings.without_password(load_settings().redis_url)
        sys.exit(f"presence: Redis at {url}: {error} (PRESENCE_REDIS_URL says where it is)")
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has enough
    except OSError as error:
        if error.errno not in _FULL:
            raise
        # Python writes what is left again as it ends, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(f"presence: the output cannot be written: {error}")
