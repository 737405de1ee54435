"""Decides when silence means something: which leases may run out. Pure: no clock, no Redis.

A lease that ended at E has run out if

1. everything received before E has been applied: every receiver reports that it has put it on the queue, and no older
   event waits there;
2. we have listened for a whole lease without a gap. A gap is one of these: for more than a quarter of a lease no
   receiver reported, one refused events (its disk was full, say) or no worker swept; a receiver fell silent; a server
   of queue or presence was replaced. A shorter interruption can cost a session only one of the three renewals that
   OpenIM sends in 1800 s.

So after an outage of ours every session has a whole lease in which to be renewed: an outage delays an end, and never
causes one. A receiver that fell silent may still take events into its journal, so it is a gap for one lease, but not
for longer, since it may never come back. If its last report has accepted events, or files that cannot be read, no lease
runs out until it reports again, another receiver has taken over its journal and removes that report, or the report is
too old to be kept (worker/sweep/receivers.py).
"""

from collections.abc import Collection
from dataclasses import dataclass

from shared.reports import Report

#: Receivers report, and workers sweep, once a second.
GAP_LEAST_MS = 3000


@dataclass(frozen=True, slots=True)
class LeaseWatermark:
    """What one sweep passes to the next, in fields of `presence-sweep`. Times are Unix milliseconds, 0 for never.

    swept_at: when the sweep was. heard_at: when a receiver last reported. since: there has been no gap since then.
    until: leases that end by then may run out, if nothing holds them. held: what holds them, for people, or "".
    servers: the run ids of the servers of queue and presence.
    """

    swept_at: int = 0
    heard_at: int = 0
    since: int = 0
    until: int = 0
    held: str = ""
    servers: str = ""


def look(
    before: LeaseWatermark,
    now: int,
    lease_ms: int,
    servers: str,
    reports: Collection[Report],
    waiting: Collection[int] | None,
) -> LeaseWatermark:
    """The watermark at `now`, by the clock of the queue's server, as are all times except those of events.

    servers: "" if they may not be asked. waiting: when the oldest event of each batch on the queue was received, or
    None if there are too many to ask; read it after the reports.
    """
    gap = max(lease_ms / 4, GAP_LEAST_MS)
    # A report from the future comes from a receiver of an older release whose clock is or was ahead.
    heard_at = min(now, max([before.heard_at, *(report.at_ms for report in reports)]))
    fresh = [report for report in reports if report.at_ms > now - gap]
    silent = [report for report in reports if report.at_ms <= now - gap]

    broken = (
        servers != before.servers
        or now - before.swept_at > gap
        or now - heard_at > gap
        or any(report.at_ms - report.healthy_at_ms > gap for report in fresh)
        or any(report.at_ms > min(before.since, now - lease_ms) for report in silent)
    )
    since = now if broken else before.since

    if not servers:
        until, held = before.until, "a server may not be asked whether it was replaced (INFO is forbidden)"
    elif not fresh:
        until, held = before.until, "no receiver reports"
    elif any(report.unreadable for report in reports):
        until, held = before.until, "accepted events wait in a journal that cannot be read"
    elif any(report.events for report in silent):
        until, held = before.until, "accepted events wait in the journal of a receiver that is silent"
    elif waiting is None:
        until, held = before.until, "too many batches wait on the queue"
    else:
        # Leases begin at the events' own times, by their receiver's clock: the earlier of both times is safe.
        marks = (report.watermark_ms + min(0, report.skew_ms) for report in fresh)
        until = int(min([now, *marks, *waiting]))
        held = "" if until - since >= lease_ms else "listening without a gap for less than a lease"
    return LeaseWatermark(now, heard_at, since, until, held, servers)
