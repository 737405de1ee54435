"""When silence counts: which leases may run out. Pure: no clock, no Redis.

A lease that ended at E has run out when

1. everything that was received before E has been applied: every receiver reports that it has put it on the queue, and
   no older event waits there;
2. we have listened without a gap for a whole lease. A gap is a time of more than a quarter of a lease in which no
   receiver reported, one refused events (a full disk, say) or no worker swept; a receiver that fell silent; a server of
   queue or presence that was replaced. A shorter one can cost a session only one of the three renewals that OpenIM
   sends in 1800 s.

So after an outage of ours everybody has a whole lease to be heard of again: an outage delays an end, and never makes
one. A receiver that fell silent may still take events into its journal, and so is a gap for one lease; no longer, since
it may never come back, and nobody says whether another has taken its journal over.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

#: Receivers report, and workers sweep, once a second.
GAP_LEAST_MS = 3000


@dataclass(frozen=True, slots=True)
class LeaseWatermark:
    """What one sweep hands on to the next; Unix milliseconds, 0 for never.

    swept_at: of the sweep. heard_at: when a receiver reported last. since: there has been no gap since then.
    until: leases that end until then may run out, if nothing holds them. held: what does, for people, or "".
    servers: which runs of the servers of queue and presence it was.
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
    reports: Collection[Mapping[str, Any]],
    waiting: Collection[int] | None,
) -> LeaseWatermark:
    """The coverage at `now`.

    reports: of receivers, as the relay writes them. waiting: when the oldest event of each batch on the queue was
    received, or None where there are too many to ask; to be read after the reports.
    """
    gap = max(lease_ms / 4, GAP_LEAST_MS)
    heard_at = max([before.heard_at, *(report["at"] for report in reports)])
    fresh = [report for report in reports if report["at"] > now - gap]
    silent = [report for report in reports if report["at"] <= now - gap]

    broken = (
        servers != before.servers
        or now - before.swept_at > gap
        or now - heard_at > gap
        or any(report["at"] - report.get("well", report["at"]) > gap for report in fresh)
        or any(each["at"] > min(before.since, now - lease_ms) for each in silent)
    )
    since = now if broken else before.since

    if not fresh:
        until, held = before.until, "no receiver reports"
    elif waiting is None:
        until, held = before.until, "too many batches wait on the queue"
    else:
        until = int(min([now, *(report["mark"] for report in fresh), *waiting]))
        held = "" if until - since >= lease_ms else "listening without a gap for less than a lease"
    return LeaseWatermark(now, heard_at, since, until, held, servers)
