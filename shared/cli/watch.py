"""`presence watch`: status changes as they happen."""

import json
import logging
import re
import time
from contextlib import suppress

import click
from redis.exceptions import RedisError

from openim_presence import Change, Feed, Missed
from shared import settings
from shared.cli.listing import Listing
from shared.cli.running import load_settings
from shared.cli.text import moment, safe
from shared.logs import setup as logs
from shared.logs.outage import Outage
from shared.redis.client import connect, is_outage

WAIT_SECONDS = 2
UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

log = logging.getLogger("watch")


def _since(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """The id of the stream entry to start after."""
    if value is None or re.fullmatch(r"\d{1,18}(-\d{1,18})?", value):
        return value
    if match := re.fullmatch(r"(\d{1,9})([smhd])", value):
        return str(max(0, int((time.time() - int(match[1]) * UNIT_SECONDS[match[2]]) * 1000)))
    raise click.BadParameter("must be a time such as 90s, 10m, 2h or 7d, or the id of a change, or 0 for all changes")


@click.command()
@click.option(
    "--since", callback=_since, help="Begin this long ago (90s, 10m, 2h, 7d), or after the change with this id."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def watch(since: str | None, as_json: bool) -> None:
    """Shows status changes as they happen, until Ctrl-C.

    If Redis goes away, it waits, and then goes on where it was. It says so on standard error, and also if changes may
    be missing.

    \b
    Examples:
      presence watch
      presence watch --since 10m --json
    """
    config = load_settings()
    logs.set_up(config.log_level, config.log_format)
    outage = Outage(log, settings.without_password(config.redis_url))
    feed = Feed(connect(config.redis_url, timeout=WAIT_SECONDS + 3), config.key_prefix, since)
    with Listing() as listing, suppress(KeyboardInterrupt):
        _follow(feed, listing, as_json, outage)


def _follow(feed: Feed, listing: Listing, as_json: bool, outage: Outage) -> None:
    while True:
        try:
            changes = feed.poll(WAIT_SECONDS)
        except Missed as missed:
            log.warning("%s; what Redis has from the 10 s before is shown again", missed)
        except RedisError as error:
            if not is_outage(error):
                raise
            time.sleep(outage.failed(error))
        else:
            outage.over()
            for change in changes:
                listing.line(json.dumps(change.as_json()) if as_json else _line(change))
            listing.flush()


def _line(change: Change) -> str:
    return (
        f"{moment(change.changed_at)}  {safe(change.user_id):<24} "
        f"{safe(change.previous) or 'unknown'} -> {safe(change.status)}  ({safe(change.command)})"
    )
