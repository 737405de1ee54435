"""`presence get`: who is online."""

import json

import click

from shared import presence, settings
from shared.cli.text import age, moment, safe
from shared.redis import connect


@click.command()
@click.argument("users", nargs=-1, required=True, metavar="USER...")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def get(users: tuple[str, ...], as_json: bool) -> None:
    """Shows the presence of users."""
    config = settings.load()
    with connect(config.redis_url) as client:
        for user in presence.read(client, users, config.keys):
            click.echo(json.dumps(user.as_json()) if as_json else _line(user))


def _line(user: presence.Presence) -> str:
    name = f"{safe(user.user_id):<24} {user.status:<8}"
    if user.status == "unknown":
        return f"{name} never heard of"
    sessions = {0: "", 1: "1 session, "}.get(user.sessions, f"{user.sessions} sessions, ")
    where = f", {safe(user.platform)}" if user.platform else ""
    return (
        f"{name} since {moment(user.changed_at)} ({age(user.changed_at)} ago), "
        f"{sessions}last event {user.command}{where}, seq {user.seq}"
    )
