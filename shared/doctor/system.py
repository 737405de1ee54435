"""The whole system: what `presence status` says about it, and what only the doctor asks."""

from collections.abc import Iterator

from shared.doctor.findings import Check, Finding, Item
from shared.observe import health
from shared.observe.readiness import Readiness
from shared.observe.snapshot import QueueState, Snapshot
from shared.settings import Settings

#: A gateway of OpenIM 3.8.2 and later repeats the online callback of at most this many users at a time.
USERS_MOST = 26_000
#: A gateway's clock may be ahead by this much, and its batches may take this long to arrive.
LEAD_MOST_MS = 5_000
DELAY_MOST_MS = 20_000


def look(before: Snapshot, now: Snapshot, settings: Settings, here: Readiness | None) -> Iterator[Item]:
    """before: a second earlier. here: what a receiver on this machine says."""
    for remark in (*health.coded_problems(now, settings, here), *health.coded_notes(now)):
        yield Finding(remark.code, remark.text)
    if now.queue.server.error:
        yield Check("queue, workers and gateways", "cannot tell", "the queue's Redis does not answer")
    else:
        yield Check("queue and workers")
        yield from _of_gateways(now.queue)
    if now.presence.known_stats is None:
        because = (
            "the Redis for presence does not answer" if now.presence.server.error else "its counters cannot be read"
        )
        yield Check("events applied", "cannot tell", because)
    else:
        yield Check("events applied")
        yield from _of_clock_ahead(before, now)
    yield from _of_leases(now, settings)


def live_gateways(queue: QueueState) -> int:
    return sum(each.state == "live" for each in queue.gateways.processes)


def _of_gateways(queue: QueueState) -> Iterator[Item]:
    processes = queue.gateways.processes
    if not processes:
        yield Check(
            "OpenIM's gateways", "not used", "none of OpenIM 3.8.2 or later, which numbers its callbacks, was heard"
        )
        return
    yield Check("OpenIM's gateways")
    for each in processes:
        name = f"OpenIM's gateway at {each.peer}, pid {each.pid}"
        if each.note:
            yield Check(f"lost batches of {name}", "cannot tell", each.note)
        elif each.state == "live" and not -DELAY_MOST_MS <= each.lead_ms <= LEAD_MOST_MS:
            which = "ahead" if each.lead_ms > 0 else "behind, or its callbacks are late"
            yield Finding("P064", f"the clock of {name} is {abs(each.lead_ms) / 1000:,.1f} s {which}")


def _of_clock_ahead(before: Snapshot, now: Snapshot) -> Iterator[Item]:
    count = now.presence.stats.clock_ahead
    if not count:
        return
    if before.presence.known_stats and count > before.presence.stats.clock_ahead:
        yield Finding("P063", "callbacks come from a gateway whose clock is more than a minute ahead")
    else:
        yield Finding("P068", f"{count:,} callbacks came from gateways whose clock was more than a minute ahead")


def _of_leases(now: Snapshot, settings: Settings) -> Iterator[Item]:
    if not settings.online_lease_seconds:
        yield Check("leases", "not used", "PRESENCE_ONLINE_LEASE_SECONDS is 0")
        return
    if now.queue.server.error or now.presence.known_stats is None:
        yield Check("leases", "cannot tell", "Redis does not answer, or presence's counters cannot be read")
        return
    yield Check("leases")
    gateways, online = live_gateways(now.queue), now.presence.stats.users_online
    if gateways and online > USERS_MOST * gateways:
        on_them = f"{gateways} gateways are" if gateways > 1 else "one gateway is"
        yield Finding(
            "P062", f"{online:,} users are online, and {on_them} known: at least one has more than {USERS_MOST:,}"
        )
    if now.presence.stats.events and not now.queue.gateways.heard:
        yield Finding("P061", "leases are on, and no callback came from a gateway of OpenIM 3.8.2 or later")
