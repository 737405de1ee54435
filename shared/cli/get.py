"""`presence get`: who is online."""

import json
import shlex
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import click
from redis import Redis

import openim_presence
from openim_presence.keys import Keys
from shared.cli.listing import Listing
from shared.cli.running import load_settings
from shared.cli.text import age, moment, named, safe
from shared.platforms import platform_name
from shared.redis.client import connect
from shared.redis.clock import ServerClock, clock_of
from shared.settings import Settings

#: How long to wait for a queue's server of its own, which is asked for nothing but its clock.
CLOCK_SECONDS = 0.5


@click.command()
@click.argument("users", nargs=-1, metavar="[USER...]")
@click.option("--all", "everybody", is_flag=True, help="All users, in no order.")
@click.option("--status", type=click.Choice(["online", "offline", "unknown"]), help="Only those.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def get(users: tuple[str, ...], everybody: bool, status: str | None, as_json: bool) -> None:
    """Shows the presence of users, in the order given; - stands for standard input, one user a line.

    With --all a user may come twice while the server resizes its table. The exit code is 1 if a user's key is broken.

    \b
    Examples:
      presence get alice bob
      presence get --all --status online --json
      cut -d, -f1 users.csv | presence get -
    """
    if everybody == bool(users):
        raise click.UsageError("name users, or give - to read them from standard input, or --all")
    config = load_settings()
    with connect(config.redis_url) as client, Listing() as listing:
        clock = cache(lambda: _clock(client, config))  # asked at the first age, and not for JSON
        if everybody:
            found = openim_presence.read_all(client, config.key_prefix)
        else:
            found = openim_presence.read(client, named(users), config.key_prefix)
        shown = broken = 0
        for count, user in enumerate(found, 1):
            if status in (None, user.status):
                shown += 1
                broken += bool(user.error)
                listing.line(json.dumps(user.as_json()) if as_json else _line(user, client, config.keys, clock))
            listing.progress("{:,} users read, {:,} shown", count, shown)
    if broken:
        sys.exit(1)


def _trouble(user: openim_presence.Presence, client: Redis, keys: Keys) -> str:
    """What is wrong with the user's key, and how to fix it."""
    key = keys.user(user.user_id)
    kind: Any = client.type(key)
    program = shlex.quote(user.user_id) if user.user_id.isprintable() else "..."
    return safe(f"{user.error}: {key} is a {kind.decode()}; rename it, or delete it: presence forget {program}")


def _clock(client: Redis, config: Settings) -> ServerClock:
    """That of the queue's server, with which receivers' clocks are compared; this machine's if it does not answer."""
    if not config.has_separate_queue:
        return clock_of(client)
    with connect(config.queue_url, timeout=CLOCK_SECONDS) as queue:
        return clock_of(queue)


def _line(user: openim_presence.Presence, client: Redis, keys: Keys, clock: Callable[[], ServerClock]) -> str:
    name = f"{safe(user.user_id):<24} {user.status:<8}"
    if user.error:
        return f"{name} {_trouble(user, client, keys)}"
    if user.status == "unknown":
        return f"{name} nothing known"
    sessions = {0: "", 1: "1 session"}.get(user.sessions, f"{user.sessions} sessions")
    if user.platforms:
        sessions += f" ({', '.join(map(platform_name, user.platforms))})"
    sessions += ", " if sessions else ""
    where = f", {safe(user.platform)}" if user.platform else ""
    return (
        f"{name} since {moment(user.changed_at)} ({age(user.changed_at, clock().now_ms())} ago), "
        f"{sessions}last event {safe(user.command)}{where}, seq {safe(user.seq)}"
    )
