"""`presence get`: who is online."""

import json

import click

import openim_presence
from shared.cli.listing import Listing
from shared.cli.openim import PLATFORMS
from shared.cli.running import load_settings
from shared.cli.text import age, moment, named, safe
from shared.redis.client import connect


@click.command()
@click.argument("users", nargs=-1, metavar="[USER...]")
@click.option("--all", "everybody", is_flag=True, help="Every user there is, in no order.")
@click.option("--status", type=click.Choice(["online", "offline", "unknown"]), help="Only those.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def get(users: tuple[str, ...], everybody: bool, status: str | None, as_json: bool) -> None:
    """Shows the presence of users, in the order asked for; - stands for standard input, one user a line.

    With --all a user may come twice, while the server resizes its table.
    """
    if everybody == bool(users):
        raise click.UsageError("name users, or - to read them from standard input, or say --all")
    config = load_settings()
    with connect(config.redis_url) as client, Listing() as listing:
        if everybody:
            found = openim_presence.read_all(client, config.key_prefix)
        else:
            found = openim_presence.read(client, named(users), config.key_prefix)
        shown = 0
        for count, user in enumerate(found, 1):
            if status in (None, user.status):
                shown += 1
                listing.line(json.dumps(user.as_json()) if as_json else _line(user))
            listing.progress("{:,} users read, {:,} shown", count, shown)


def _line(user: openim_presence.Presence) -> str:
    name = f"{safe(user.user_id):<24} {user.status:<8}"
    if user.status == "unknown":
        return f"{name} {safe(user.error) or 'never heard of'}"
    sessions = {0: "", 1: "1 session"}.get(user.sessions, f"{user.sessions} sessions")
    if user.platforms:
        sessions += f" ({', '.join(PLATFORMS.get(each, f'platform {each}') for each in user.platforms)})"
    sessions += ", " if sessions else ""
    where = f", {safe(user.platform)}" if user.platform else ""
    return (
        f"{name} since {moment(user.changed_at)} ({age(user.changed_at)} ago), "
        f"{sessions}last event {safe(user.command)}{where}, seq {safe(user.seq)}"
    )
