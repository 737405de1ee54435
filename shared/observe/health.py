"""Whether the whole system is well, and if not, why: sentences for a person, each with what to do."""

from collections.abc import Iterator
from typing import Any

from shared.observe.snapshot import PresenceState, Server, System
from shared.settings import Settings, without_password

#: A receiver process reports every second.
SILENT_SECONDS = 15
#: So long nothing should wait that could go on.
WAITING_SECONDS = 30
FULL = 0.9


def problems(system: System, settings: Settings, local: dict[str, Any] | None = None) -> list[str]:
    """What is wrong; empty where all is well. local: /readyz of a receiver on this machine, if one is here."""
    return [
        *_of_receiver(local),
        *_of_outages(system, settings),
        *(() if system.queue.server.error else _of_queue(system)),
        *(() if system.presence.server.error else _of_presence(system.presence, settings)),
    ]


def notes(system: System) -> list[str]:
    """What is not wrong, and yet should be known."""
    queue, presence = system.queue, system.presence
    lines = []
    on_disk = {"the queue": queue.server.on_disk, "presence": presence.server.on_disk}
    if forgetful := " and ".join(role for role, keeps in on_disk.items() if not keeps):
        lines.append(f"the Redis for {forgetful} keeps nothing on disk (appendonly no): a restart loses all of it")
    if queue.retrying:
        lines.append(f"{counted(queue.retrying, 'event')} failed and will be tried again: see the workers' log")
    silent = [each.name for each in queue.receivers if is_silent(each.at_ms, system.at_ms) and not each.events]
    if silent:
        lines.append(f"silent, with nothing in the journal when last heard of: {', '.join(silent)}")
    if queue.leases_held:
        lines.append(f"no lease runs out now: {queue.leases_held}")
    return lines


def counted(count: int, noun: str) -> str:
    """`1 event`, `2 events`, `1,000 batches`."""
    plural = noun + ("es" if noun.endswith("ch") else "s")
    return f"{count:,} {noun if count == 1 else plural}"


def is_silent(at_ms: int, now_ms: int) -> bool:
    return now_ms - at_ms > SILENT_SECONDS * 1000


def _of_receiver(local: dict[str, Any] | None) -> Iterator[str]:
    if not local:
        return
    if local["trouble"]:
        yield f"the receiver on this machine refuses events: {local['trouble']} ({local.get('journal', '')})"
    if local["redis"] == "down":
        yield f"the receiver on this machine cannot push: {counted(local['journal_events'], 'event')} in its journal"
    if local["damaged_files"]:
        aside = counted(local["damaged_files"], "damaged journal file")
        yield f"{aside} set aside: see *.damaged in {local.get('journal', 'its journal directory')}"


def _of_outages(system: System, settings: Settings) -> Iterator[str]:
    queue, presence = system.queue.server.error, system.presence.server.error
    if queue and queue == presence and settings.queue_url == settings.redis_url:
        yield f"Redis, {without_password(settings.redis_url)}, does not answer: {queue}"
        return
    if queue:
        yield f"the queue's Redis, {without_password(settings.queue_url)}, does not answer: {queue}"
    if presence:
        yield f"the Redis for presence, {without_password(settings.redis_url)}, does not answer: {presence}"


def _of_queue(system: System) -> Iterator[str]:
    queue = system.queue
    yield from (f"a key is not as it should be: {trouble}" for trouble in queue.troubles)
    yield from _of_server("queue", queue.server)
    yield from _of_reports(system)
    if not queue.workers:
        yield "no worker is alive: nothing is applied until one is started (python -m worker)"
    if any(worker.state == "suspended" for worker in queue.workers):
        yield "the workers are suspended: rq resume, with the queue's URL"
    waited = _seconds(queue.oldest_ms, system.at_ms)
    if waited > WAITING_SECONDS:
        yield f"events wait in the queue, the oldest for {waited:,.0f} s: too few workers, or no Redis for them"
    if queue.failed:
        yield f"{counted(queue.failed, 'failed batch')} to look at: presence failed list"


def _of_reports(system: System) -> Iterator[str]:
    reports = system.queue.receivers
    if not any(not is_silent(report.at_ms, system.at_ms) for report in reports):
        yield "no receiver has reported lately: nobody takes callbacks, or none reaches the queue's Redis"
    for report in reports:
        if report.trouble and not is_silent(report.at_ms, system.at_ms):
            yield f"the receiver {report.name} refuses events, or did when the last one came: {report.trouble}"
        if is_silent(report.at_ms, system.at_ms):
            if report.events:
                silent = f"{report.name} is silent for {_seconds(report.at_ms, system.at_ms):,.0f} s"
                yield f"the receiver {silent}; {counted(report.events, 'event')} in its journal then"
        elif report.events and (waited := _seconds(report.mark_ms, system.at_ms)) > WAITING_SECONDS:
            yield f"events wait in the journal of {report.name}, the oldest for {waited:,.0f} s"


def _of_presence(presence: PresenceState, settings: Settings) -> Iterator[str]:
    yield from (f"a key is not as it should be: {trouble}" for trouble in presence.troubles)
    if settings.redis_url != settings.queue_url:
        yield from _of_server("presence", presence.server)


def _of_server(role: str, server: Server) -> Iterator[str]:
    yield from (f"the {role}'s Redis {trouble}" for trouble in server.troubles)
    if server.max_bytes and server.used_bytes > FULL * server.max_bytes:
        yield f"the {role}'s Redis is full to {server.used_bytes / server.max_bytes:.0%} of its maxmemory"
    if server.max_bytes and server.evicts:
        yield f"the {role}'s Redis evicts keys when it is full: set its maxmemory-policy to noeviction"


def _seconds(then_ms: int, now_ms: int) -> float:
    return (now_ms - then_ms) / 1000 if then_ms else 0.0
