"""`presence status`: is all well and, if not, why?"""

import json
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

import click

from shared.cli.running import load_settings
from shared.cli.text import age, moment, safe
from shared.errors import Unavailable
from shared.gateways.view import Gateway
from shared.observe import health
from shared.observe.counters import Stats
from shared.observe.here import ask_receiver
from shared.observe.poller import Poller
from shared.observe.readiness import Readiness
from shared.observe.snapshot import Server, Snapshot
from shared.observe.status import Status
from shared.settings import Settings, without_password
from shared.truth.ledger import Ledger

BETWEEN_SECONDS = 1.0
REFRESH_SECONDS = 2.0
Here = Readiness | None
#: There may be hundreds; --json has all.
GATEWAYS_SHOWN = 8
#: After this time without a heartbeat it is shown; heartbeats come about every three seconds.
QUIET_SECONDS = 6
#: A longer number is no time in Unix milliseconds.
TIME_DIGITS_MOST = 15
#: What a comparison counts, in words.
DRIFT = {"ghost": "ghosts", "missing": "missing", "platforms": "on other platforms", "unknown": "unknown"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--watch", is_flag=True, help=f"Refresh every {REFRESH_SECONDS:g} s, until Ctrl-C.")
def status(as_json: bool, watch: bool) -> None:
    """Shows whether all is well, what waits where, and how fast events pass.

    The exit code is 0 if all is well, else 1. It asks both Redis servers, and the receiver on this machine if any.
    Settings that matter: PRESENCE_REDIS_URL, PRESENCE_QUEUE_URL, PRESENCE_ADMIN_HOST, PRESENCE_ADMIN_PORT.

    \b
    Examples:
      presence status
      presence status --watch
    """
    config = load_settings()
    poller, is_well = Poller(config), False
    with ThreadPoolExecutor(1) as pool, suppress(KeyboardInterrupt):
        here = pool.submit(ask_receiver, config)
        before, snapshot = None, poller.poll()
        if not watch and not snapshot.presence.server.error:
            time.sleep(BETWEEN_SECONDS)
            before, snapshot = snapshot, poller.poll()
        view = View(config, snapshot, before, here)
        while True:
            if watch and not as_json and sys.stdout.isatty():
                click.clear()
            click.echo(json.dumps(view.as_json()) if as_json else view.as_text())
            is_well = not view.problems
            if not watch:
                break
            time.sleep(REFRESH_SECONDS)
            here = pool.submit(ask_receiver, config)
            view = View(config, poller.poll(), view.snapshot, here)
    sys.exit(0 if is_well else 1)


def _heard(here: "Future[Here]") -> tuple[Here, list[str]]:
    """What the receiver on this machine said, and the problem if it did not answer."""
    try:
        return here.result(), []
    except Unavailable as error:
        return None, [str(error)]


class View(Status):
    """The same for a terminal. here: what the receiver on this machine will have said."""

    def __init__(self, config: Settings, snapshot: Snapshot, before: Snapshot | None, here: "Future[Here]") -> None:
        super().__init__(config, snapshot, before, *_heard(here))

    def as_text(self) -> str:
        well = "healthy" if not self.problems else "NOT healthy"
        lines = [f"{well:<36} {moment(self.snapshot.at_ms)}"]
        lines += [f"  ! {safe(problem)}" for problem in self.problems]
        lines += [f"  . {safe(note)}" for note in self.notes]
        lines.append("")
        if self.local:
            lines.append(_row("here", _receiver_here(self.local)))
            lines += _at_the_edge(self.local)
        if not self.snapshot.queue.server.error:
            lines += self._queue_rows()
        if not self.snapshot.presence.server.error:
            lines += self._presence_rows()
        return "\n".join([*lines, *self._server_rows()])

    def _queue_rows(self) -> list[str]:
        queue, now = self.snapshot.queue, self.snapshot.at_ms
        receivers = [
            f"{each.name}, {_waiting(each.events, each.bytes, each.watermark_ms)}, reported {age(each.at_ms, now)} ago"
            + (" (silent)" if health.is_silent(each.at_ms, now) else "")
            for each in queue.receivers
        ]
        workers = [
            f"{each.name[:12]} {each.state}, up {age(each.since_ms, now)}"
            + (f", last heartbeat {age(each.seen_ms, now)} ago" if now - each.seen_ms > QUIET_SECONDS * 1000 else "")
            for each in queue.workers
        ]
        gateways = [_gateway(each, now) for each in queue.gateways.processes[:GATEWAYS_SHOWN]]
        since = f", oldest event received {age(queue.oldest_ms, now)} ago" if queue.oldest_ms else ""
        return [
            *_rows("receivers", receivers),
            _row("queue", f"{health.counted(queue.jobs, 'batch')} waiting{since}"),
            _row("", f"{queue.running:,} running, {queue.retrying:,} to be tried again, {queue.failed:,} failed"),
            *_rows("workers", workers),
            *(_rows("gateways", gateways) if gateways else ()),
            *([_row("OpenIM", _compared(queue.ledger, now))] if queue.ledger.compared_at_ms else ()),
        ]

    def _presence_rows(self) -> list[str]:
        changes = self.snapshot.presence.last_changes
        rates = [f"{rate:,.0f} {name}/s" for name, rate in self.rates.items() if rate is not None]
        rows = [_row("rates", ", ".join(rates))] if rates else []
        if stats := self.stats:
            rows += self._counted(stats)
        if changes:
            change = changes[0]
            who = f"{safe(change.get('user_id', ''))} {safe(change.get('status', ''))}"
            at = change.get("changed_at", "")
            # Another program may have written the entry.
            when = int(at) if at.isdecimal() and len(at) <= TIME_DIGITS_MOST else None
            since = "at an unknown time" if when is None else f"{age(when, self.snapshot.at_ms)} ago ({moment(when)})"
            rows.append(_row("last change", f"{who}, {since}"))
        return rows

    def _counted(self, stats: Stats) -> list[str]:
        counted = ", ".join(f"{count:,} {name}" for name, count in stats.outcomes.items())
        ahead = f"{stats.clock_ahead:,} from gateways whose clock was ahead: see the workers' log"
        return [
            _row("lag", self._lag(stats)),
            _row("events", f"{counted}; {health.counted(stats.changes, 'change')} of status"),
            *([_row("", ahead)] if stats.clock_ahead else ()),
            _row("users", f"{stats.users_online:,} online"),
        ]

    def _lag(self, stats: Stats) -> str:
        for before, when in ((self.before, "just now"), (None, "since the beginning")):
            half, most = stats.lag_below(0.5, before), stats.lag_below(0.99, before)
            if half is not None and most is not None and (before or when != "just now"):
                return f"half of the events within {_span(half)}, 99% within {_span(most)} ({when})"
        return "nothing applied yet"

    def _server_rows(self) -> list[str]:
        config, queue, presence = self.config, self.snapshot.queue.server, self.snapshot.presence.server
        if config.queue_url == config.redis_url and queue.error == presence.error:
            return [_row("Redis", _server(config.redis_url, presence))]
        return [
            _row("Redis", f"for the queue: {_server(config.queue_url, queue)}"),
            _row("", f"for presence: {_server(config.redis_url, presence)}"),
        ]


def _compared(ledger: Ledger, now_ms: int) -> str:
    found = ledger.found
    counts = ", ".join(f"{found[name]:,} {noun}" for name, noun in DRIFT.items())
    compared = f"compared {found['compared']:,} users {age(ledger.compared_at_ms, now_ms)} ago: {counts}"
    return f"{compared}; {sum(ledger.put_right.values()):,} put right so far"


def _gateway(gateway: Gateway, now_ms: int) -> str:
    when = f"last callback {age(gateway.last_at_ms, now_ms)} ago"
    heard = f"OpenIM at {gateway.peer}, pid {gateway.pid}: {gateway.state}, {when}"
    if gateway.lost is None:
        return f"{heard}; {gateway.note}"
    return f"{heard}, {health.counted(gateway.heard, 'batch')} heard, {gateway.lost:,} lost"


def _receiver_here(local: Readiness) -> str:
    waits = _waiting(local.journal_events, local.journal_bytes, 0)
    since = f" for {local.journal_oldest_seconds:.0f} s" if local.journal_oldest_seconds else ""
    return f"a receiver on this machine is {local.status}; {waits}{since}"


def _at_the_edge(local: Readiness) -> list[str]:
    """What came to the receiver on this machine lately."""
    callbacks = [
        f"{safe(each.command)} from {safe(each.peer)}, {age(each.at_ms)} ago ({moment(each.at_ms)})"
        for each in local.callbacks
    ]
    refused = [
        f"{safe(str(each))}: {health.counted(each.count, 'time')} since {moment(each.since_ms)}, "
        f"the last {age(each.at_ms)} ago from {safe(each.peer)}" + (" (a probe, not OpenIM)" if each.probe else "")
        for each in local.refused
    ]
    return [*_rows("callbacks", callbacks), *(_rows("refused", refused) if refused else ())]


def _waiting(events: int, size: int, since_ms: int) -> str:
    if not events:
        return "nothing in the journal"
    since = f" since {moment(since_ms)}" if since_ms else ""
    return f"{health.counted(events, 'event')} ({_size(size)}) in the journal{since}"


def _server(url: str, server: Server) -> str:
    where = without_password(url)
    if server.error:
        return f"{where} does not answer: {safe(server.error)}"
    most = f" of {_size(server.max_bytes)}" if server.max_bytes else ""
    return f"{server.version} at {where}, {_size(server.used_bytes)}{most} used"


def _rows(name: str, values: list[str]) -> list[str]:
    return [_row(name if index == 0 else "", value) for index, value in enumerate(values or ["none"])]


def _row(name: str, value: str) -> str:
    return f"{name:<12} {value}"


def _size(count: int) -> str:
    for size, unit in ((1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "kB")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def _span(seconds: float) -> str:
    if seconds == float("inf"):
        return "more than an hour"
    return f"{seconds * 1000:g} ms" if seconds < 1 else f"{seconds:g} s"
