"""Whether the whole system is well and, if not, why: sentences for a person, each with what to do."""

from collections.abc import Iterator
from typing import NamedTuple

from shared.gateways.view import Gateway
from shared.observe.edge import of_openim_unheard
from shared.observe.readiness import Readiness
from shared.observe.snapshot import PresenceState, QueueState, Server, Snapshot
from shared.redis.clock import SKEW_MOST_MS
from shared.settings import Settings, without_password

#: After this time without a report a receiver process is silent; it reports every second.
SILENT_SECONDS = 15
#: Nothing should wait for longer than this.
WAITING_SECONDS = 30
FULL = 0.9
#: How long a gateway that has ended is mentioned.
RECENT_MS = 3_600_000


class Remark(NamedTuple):
    """code: as `presence doctor` lists it (shared/doctor/codes.py)."""

    code: str
    text: str


#: Anything that happened longer ago is not mentioned.
DAY_MS = 86_400_000


def problems(snapshot: Snapshot, settings: Settings, local: Readiness | None = None) -> list[str]:
    """What is wrong; empty if all is well. local: what a receiver on this machine says, if there is one."""
    return [each.text for each in coded_problems(snapshot, settings, local)]


def notes(snapshot: Snapshot) -> list[str]:
    """What is not wrong but should be known."""
    return [each.text for each in coded_notes(snapshot)]


def coded_problems(snapshot: Snapshot, settings: Settings, local: Readiness | None = None) -> list[Remark]:
    """As `problems`, each with its code."""
    return [
        *_of_outages(snapshot, settings),  # the cause of much that follows
        *_of_receiver(local),
        *(() if snapshot.queue.server.error else _of_queue(snapshot)),
        *(() if snapshot.presence.server.error else _of_presence(snapshot.presence, settings)),
    ]


def coded_notes(snapshot: Snapshot) -> list[Remark]:
    """As `notes`, each with its code."""
    queue = snapshot.queue
    return [
        *_of_disks(queue, snapshot.presence),
        *_of_retries(queue),
        *_of_silence(queue, snapshot.at_ms),
        *_of_clocks(queue),
        *_of_gateways(queue),
        *_of_workers(queue, snapshot.at_ms),
        *_of_comparisons(queue, snapshot.at_ms),
    ]


def _of_disks(queue: QueueState, presence: PresenceState) -> Iterator[Remark]:
    on_disk = {"the queue": queue.server.on_disk, "presence": presence.server.on_disk}
    if forgetful := " and ".join(role for role, keeps in on_disk.items() if not keeps):
        text = f"the Redis for {forgetful} keeps nothing on disk (appendonly no): a restart loses all of it"
        yield Remark("P014", text)


def _of_retries(queue: QueueState) -> Iterator[Remark]:
    if queue.retrying:
        text = f"{counted(queue.retrying, 'event')} failed and will be tried again: presence failed list"
        yield Remark("P058", text)


def _of_silence(queue: QueueState, now_ms: int) -> Iterator[Remark]:
    if silent := [each.name for each in queue.receivers if is_silent(each.at_ms, now_ms) and not each.events]:
        yield Remark("P059", f"silent, with nothing in the journal at the last report: {', '.join(silent)}")


def _of_workers(queue: QueueState, now_ms: int) -> Iterator[Remark]:
    others = "; others do its work" if queue.workers else ""
    for worker in queue.silent_workers:
        yield Remark(
            "P056",
            f"a worker has been silent for {_seconds(worker.seen_ms, now_ms):,.0f} s, host {worker.host}, "
            f"pid {worker.pid}: frozen, killed, or cut off from Redis{others}",
        )
    if queue.leases_held:
        yield Remark("P069", f"no lease runs out now: {queue.leases_held}")


def _of_gateways(queue: QueueState) -> Iterator[Remark]:
    yield from _of_restarts(queue)
    for each in queue.gateways.processes:
        name = f"OpenIM's gateway at {each.peer}, pid {each.pid}"
        if each.state == "silent":
            yield Remark(
                "P066", f"{name}, is silent: if it was stopped or killed, it did not report that its users left"
            )
        if each.lost:
            numbers = ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in each.missing[-3:])
            yield Remark(
                "P065",
                f"{name}, sent {counted(each.lost, 'batch')} of callbacks that never came, the last are {numbers}",
            )


def _of_restarts(queue: QueueState) -> Iterator[Remark]:
    """One for each address, however often its gateway has ended: it may do so again and again."""
    ended: dict[str, list[Gateway]] = {}
    for each in queue.gateways.processes:
        if each.state == "restarted" and queue.at_ms - each.last_at_ms < RECENT_MS:
            ended.setdefault(each.peer, []).append(each)
    for peer, those in ended.items():
        often = f" {len(those):,} times within an hour" if len(those) > 1 else ""
        text = f"OpenIM's gateway at {peer}, pid {those[0].pid}, has ended{often} and another runs"
        yield Remark("P067", f"{text}: it reported nothing about its users")


def _of_comparisons(queue: QueueState, now_ms: int) -> Iterator[Remark]:
    ledger = queue.ledger
    if ledger.trouble and now_ms - ledger.trouble_at_ms < DAY_MS:
        seconds = _seconds(ledger.trouble_at_ms, now_ms)
        yield Remark("P100", f"{seconds:,.0f} s ago OpenIM could not be asked who is online: {ledger.trouble}")


def _of_clocks(queue: QueueState) -> Iterator[Remark]:
    for role, programs in (("receiver", queue.receivers), ("worker", queue.workers)):
        for each in programs:
            if abs(each.skew_ms) > SKEW_MOST_MS:
                which = "ahead of" if each.skew_ms > 0 else "behind"
                seconds = f"{abs(each.skew_ms) / 1000:,.1f} s"
                yield Remark(
                    "P057",
                    f"the clock of {role} {each.name} is {seconds} {which} that of the queue's server: set it (NTP)",
                )


def counted(count: int, noun: str) -> str:
    """`1 event`, `2 events`, `1,000 batches`."""
    plural = noun + ("es" if noun.endswith("ch") else "s")
    return f"{count:,} {noun if count == 1 else plural}"


def is_silent(at_ms: int, now_ms: int) -> bool:
    return now_ms - at_ms > SILENT_SECONDS * 1000


def _of_receiver(local: Readiness | None) -> Iterator[Remark]:
    if not local:
        return
    if local.trouble:
        yield Remark("P040", f"the receiver on this machine is not ready: {local.trouble} ({local.journal})")
    if local.redis == "down":
        yield Remark(
            "P049", f"the receiver on this machine cannot push: {counted(local.journal_events, 'event')} in its journal"
        )
    if refused := of_openim_unheard(local.callbacks, local.refused):
        last, count = refused[0], sum(each.count for each in refused)
        yield Remark("P047", f"every callback is refused: {count:,} lately, the last from {last.peer}: {last}")
    if local.damaged_files:
        aside = counted(local.damaged_files, "damaged journal file")
        yield Remark("P032", f"{aside} set aside: see *.damaged in {local.journal}")


def _of_outages(snapshot: Snapshot, settings: Settings) -> Iterator[Remark]:
    queue, presence = snapshot.queue.server.error, snapshot.presence.server.error
    if queue and queue == presence and settings.queue_url == settings.redis_url:
        yield Remark("P010", f"Redis, {without_password(settings.redis_url)}, does not answer: {queue}")
        return
    if queue:
        yield Remark("P010", f"the queue's Redis, {without_password(settings.queue_url)}, does not answer: {queue}")
    if presence:
        yield Remark(
            "P010", f"the Redis for presence, {without_password(settings.redis_url)}, does not answer: {presence}"
        )


def _of_queue(snapshot: Snapshot) -> Iterator[Remark]:
    queue = snapshot.queue
    yield from _of_keys(queue)
    yield from _of_server("queue", queue.server)
    yield from _of_reports(snapshot)
    if not queue.workers:
        yield Remark("P050", "no worker is alive: nothing is applied until one is started (python -m worker)")
    if any(worker.state == "suspended" for worker in queue.workers):
        yield Remark("P051", "the workers are suspended: rq resume, with the queue's URL")
    waited = _seconds(queue.oldest_ms, snapshot.at_ms)
    if waited > WAITING_SECONDS:
        yield Remark(
            "P053", f"events wait in the queue, the oldest for {waited:,.0f} s: too few workers, or no Redis for them"
        )
    if queue.failed:
        yield Remark("P054", f"{counted(queue.failed, 'failed batch')} to look at: presence failed list")


def _of_reports(snapshot: Snapshot) -> Iterator[Remark]:
    reports = snapshot.queue.receivers
    if not any(not is_silent(report.at_ms, snapshot.at_ms) for report in reports):
        yield Remark("P052", "no receiver has reported lately: none is running, or none reaches the queue's Redis")
    for report in reports:
        if report.trouble and not is_silent(report.at_ms, snapshot.at_ms):
            yield Remark(
                "P040", f"the receiver {report.name} refuses events, or refused the last one: {report.trouble}"
            )
        if report.unreadable:
            yield Remark(
                "P033", f"{counted(report.unreadable, 'journal file')} of {report.name} cannot be read: see its log"
            )
        if report.kept_reason:
            yield Remark(
                "P039",
                f"{counted(report.kept_bytes, 'byte')} stay in the journal of {report.name}: {report.kept_reason}",
            )
        if is_silent(report.at_ms, snapshot.at_ms):
            if report.events:
                silent = f"{report.name} has been silent for {_seconds(report.at_ms, snapshot.at_ms):,.0f} s"
                yield Remark("P055", f"the receiver {silent}; its journal had {counted(report.events, 'event')} then")
        elif report.events and (waited := _seconds(report.watermark_ms, snapshot.at_ms)) > WAITING_SECONDS:
            yield Remark("P055", f"events wait in the journal of {report.name}, the oldest for {waited:,.0f} s")


def _of_presence(presence: PresenceState, settings: Settings) -> Iterator[Remark]:
    yield from _of_keys(presence)
    if settings.redis_url != settings.queue_url:
        yield from _of_server("presence", presence.server)


def _of_keys(state: QueueState | PresenceState) -> Iterator[Remark]:
    yield from (Remark("P022", f"a key is wrong: {trouble}") for trouble in state.troubles)
    if state.denied:
        others = f" (and {len(state.denied) - 1} more)" if len(state.denied) > 1 else ""
        yield Remark("P020", f"Redis does not let us read {state.denied[0]}{others}")


def _of_server(role: str, server: Server) -> Iterator[Remark]:
    yield from (Remark("P017", f"the {role}'s Redis {trouble}") for trouble in server.troubles)
    if server.max_bytes and server.used_bytes > FULL * server.max_bytes:
        yield Remark("P019", f"the {role}'s Redis uses {server.used_bytes / server.max_bytes:.0%} of its maxmemory")
    if server.max_bytes and server.evicts:
        yield Remark("P012", f"the {role}'s Redis evicts keys when it is full: set its maxmemory-policy to noeviction")


def _seconds(then_ms: int, now_ms: int) -> float:
    return (now_ms - then_ms) / 1000 if then_ms else 0.0
