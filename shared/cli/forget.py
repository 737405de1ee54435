"""`presence forget`: starts afresh with a user."""

import click

from shared.cli.listing import Listing
from shared.cli.running import load_settings
from shared.cli.text import named, safe
from shared.forget import forget as forget_user
from shared.redis.client import connect


@click.command()
@click.argument("users", nargs=-1, required=True, metavar="USER...")
def forget(users: tuple[str, ...]) -> None:
    """Deletes what is remembered of users; - stands for standard input, one user a line.

    The next callback of each starts afresh. If a user was online, the change feed says that they no longer are. Use it
    for users whose events came with a seq from a wrong clock, and for keys that are not hashes.

    \b
    Examples:
      presence forget alice bob
      presence get --all --status unknown --json | jq -r .user_id | presence forget -
    """
    config = load_settings()
    with connect(config.redis_url) as client, Listing() as listing:
        for user in named(users):
            status = forget_user(client, config, user)
            listing.line(f"{safe(user):<24} {f'forgotten, was {status}' if status else 'nothing known'}")
