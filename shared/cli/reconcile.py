"""`presence reconcile`: compares presence with OpenIM itself, and corrects it."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

import openim_presence
from shared.cli.listing import Listing
from shared.cli.running import load_settings
from shared.cli.text import named, safe
from shared.observe.health import counted
from shared.openim.errors import OpenIMError
from shared.platforms import platform_name
from shared.queue import check_type, open_queue
from shared.redis.client import connect
from shared.settings import Settings

if TYPE_CHECKING:  # and in the functions: aiohttp would make every `presence` command take half as long again to start
    from shared.openim.client import OpenIM
    from shared.truth.comparison import Comparison
    from shared.truth.findings import Finding, Tally
    from shared.truth.questions import Servers

#: Exit codes.
DIFFERS, NOT_ASKED = 1, 3
BAR = 30


@dataclass(frozen=True, slots=True)
class _Wanted:
    users: tuple[str, ...]
    online: bool
    everybody: bool
    dry_run: bool
    force: bool


@click.command()
@click.argument("users", nargs=-1, metavar="[USER...]")
@click.option("--online", is_flag=True, help="All users who are shown online.")
@click.option("--all", "everybody", is_flag=True, help="All users that presence or OpenIM knows.")
@click.option("--dry-run", is_flag=True, help="Only say what differs.")
@click.option("--force", is_flag=True, help="Even if too many users would go offline at once.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, and the counts in the last one.")
def reconcile(users: tuple[str, ...], online: bool, everybody: bool, dry_run: bool, force: bool, as_json: bool) -> None:
    """Asks OpenIM who is online, and corrects what differs; - stands for standard input, one user a line.

    OpenIM sends nothing for a gateway that crashed, and loses callbacks. A user becomes online as soon as OpenIM shows
    them online. A user becomes offline only if there is proof that OpenIM reached their gateway, or that the gateway is
    gone. A callback that was sent later wins, whenever it comes. Users with an event in the last 5 s are left for the
    next run.

    Exit codes: 0 nothing differs, or all is corrected; 1 something still differs; 3 OpenIM could not be asked.
    Settings that matter: PRESENCE_OPENIM_API, PRESENCE_OPENIM_SECRET, PRESENCE_OPENIM_ADMIN, PRESENCE_REDIS_URL,
    PRESENCE_QUEUE_URL.

    \b
    Examples:
      presence reconcile alice bob
      presence reconcile --online --dry-run
      presence reconcile --all --json
    """
    if bool(users) + online + everybody != 1:
        raise click.UsageError("name users, or give - to read them from standard input, --online or --all")
    config = load_settings()
    if not config.openim_api:
        click.echo("presence: PRESENCE_OPENIM_API: set it to OpenIM's REST API, such as http://openim:10002", err=True)
        sys.exit(NOT_ASKED)
    wanted = _Wanted(users, online, everybody, dry_run, force)
    with Listing() as listing:
        began = time.monotonic()
        try:
            tally = asyncio.run(_compare(config, wanted, listing, as_json))
        except OpenIMError as error:
            click.echo(f"presence: {error}", err=True)
            sys.exit(NOT_ASKED)
        listing.line(json.dumps(tally.as_json()) if as_json else _summary(tally, dry_run, time.monotonic() - began))
    if tally.left:
        sys.exit(DIFFERS)


async def _compare(config: Settings, wanted: _Wanted, listing: Listing, as_json: bool) -> "Tally":
    from shared.openim.client import OpenIM
    from shared.truth.comparison import Comparison
    from shared.truth.questions import Servers

    def report(finding: "Finding") -> None:
        listing.line(json.dumps(finding.as_json()) if as_json else _line(finding))

    def progress() -> None:
        done = comparison.tally.compared
        bar = "#" * min(BAR, BAR * done // total) if total else ""
        listing.progress(f"[{bar:-<{BAR}}] {{:,}} of about {{:,}} compared", done, max(done, total))

    with connect(config.redis_url) as presence, connect(config.queue_url) as connection:
        queue = open_queue(connection, config)
        check_type(queue)
        servers = Servers(presence, queue, config.keys)
        total = _count(wanted, servers)
        async with OpenIM(config.openim_api, config.openim_secret, config.openim_admin) as openim:
            comparison = Comparison(
                openim, servers, fixes=not wanted.dry_run, forces=wanted.force, report=report, progress=progress
            )
            return await _record(comparison, wanted, servers, openim)


async def _record(comparison: "Comparison", wanted: _Wanted, servers: "Servers", openim: "OpenIM") -> "Tally":
    """Runs the comparison, and writes down its results."""
    from shared.truth.ledger import LedgerWriter

    ledger = LedgerWriter(servers.queue.connection, servers.keys)
    try:
        tally = await comparison.run(_users(wanted, servers, openim))
    except OpenIMError as error:
        ledger.failed(str(error), servers.clock.now_ms())
        raise
    if wanted.online or wanted.everybody:
        ledger.compared(tally, servers.clock.now_ms())
    else:
        ledger.answered()
    return tally


def _users(wanted: _Wanted, servers: "Servers", openim: "OpenIM") -> AsyncIterator[str]:
    from shared.truth import people

    if wanted.everybody:
        return people.everybody(servers.presence, servers.keys, openim)
    if wanted.online:
        return people.shown_online(servers.presence, servers.keys)
    return people.these(named(wanted.users))


def _count(wanted: _Wanted, servers: "Servers") -> int:
    """How many users there will be; 0 if that is not known before they are read."""
    if wanted.online:
        return openim_presence.users_online(servers.presence, servers.keys.prefix)
    return 0 if wanted.everybody or "-" in wanted.users else len(wanted.users)


def _line(finding: "Finding") -> str:
    verdict = finding.verdict
    done = {"opened": "opened", "closed": "closed", "none": "left"}[finding.action]
    held = f"we: {_names(verdict.ours)}, OpenIM: {_names(verdict.openim)}"
    return f"{safe(verdict.user_id):<24} {verdict.kind:<9} {done:<6} {held} ({verdict.why})"


def _names(platforms: Collection[int]) -> str:
    return " ".join(map(platform_name, platforms)) or "-"


def _summary(tally: "Tally", dry_run: bool, seconds: float) -> str:
    counts = f"{counted(tally.ghost, 'ghost')}, {tally.missing:,} missing, {tally.platforms:,} on other platforms"
    end = "nothing was changed" if dry_run else f"{tally.left:,} left as they are"
    if not dry_run and not tally.left:
        end = "all put right" if tally.ghost + tally.missing + tally.platforms else "all as in OpenIM"
    more = f", {tally.unknown:,} unknown" if tally.unknown else ""
    more += f", {tally.skipped:,} with an event just now" if tally.skipped else ""
    return f"compared {counted(tally.compared, 'user')} with OpenIM in {seconds:.1f} s: {counts}{more}; {end}"
