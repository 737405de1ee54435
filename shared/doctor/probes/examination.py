"""All probes, and what follows from them."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from shared.doctor import configuration, journal, openim_api, openim_config, receiver, servers, system
from shared.doctor.findings import Check, Examination, Finding, Item
from shared.doctor.probes import journal as journal_probe
from shared.doctor.probes import openim as openim_probe
from shared.doctor.probes import openim_api as api_probe
from shared.doctor.probes import receiver as receiver_probe
from shared.doctor.probes import servers as servers_probe
from shared.observe.health import is_silent
from shared.observe.poller import Poller
from shared.observe.snapshot import PresenceState, QueueState, Server, Snapshot
from shared.settings import Settings
from shared.timed import Probe

#: All probes begin at once, so all together take no longer than the longest.
SERVER_SECONDS = 8.0
SYSTEM_SECONDS = 6.0
RECEIVER_SECONDS = 8.0
JOURNAL_SECONDS = 5.0
OPENIM_SECONDS = 8.0
BETWEEN_SECONDS = 1.0


def examine(settings: Settings, openim: Path | None = None) -> Examination:
    """openim: where its files are. Ends within 8 s, whatever hangs."""
    return Examination.of(time.time_ns() // 1_000_000, _examine(settings, openim))


def _examine(settings: Settings, openim: Path | None) -> Iterator[Item]:
    roles: dict[str, tuple[str, ...]] = {settings.queue_url: ("queue",)}
    roles[settings.redis_url] = (*roles.get(settings.redis_url, ()), "presence")
    of_servers = [
        Probe(f"Redis for {' and '.join(of)}", partial(servers_probe.ask, url, of, settings), SERVER_SECONDS)
        for url, of in roles.items()
    ]
    of_system = Probe("queue and workers", partial(_snapshots, settings), SYSTEM_SECONDS)
    of_receiver = Probe("receiver", partial(receiver_probe.ask, settings), RECEIVER_SECONDS)
    of_journal = Probe("journal", partial(journal_probe.look_at, settings.journal_dir), JOURNAL_SECONDS)
    of_openim = Probe("OpenIM's files", partial(_of_files, openim, settings), OPENIM_SECONDS) if openim else None
    of_api = Probe("OpenIM's API", partial(api_probe.ask, settings), OPENIM_SECONDS) if settings.openim_api else None

    yield from configuration.look(settings)
    heard, unreachable = [], False
    for probe in of_servers:
        if facts := probe.result():
            unreachable |= bool(facts.error)
            heard += [*servers.look(facts, journal_fsync=settings.journal_fsync)]
    yield from heard
    before, now = of_system.result() or (_nothing(of_system),) * 2
    api = of_api.result() if of_api else None
    here = of_receiver.result()
    readiness = here.readiness if here else None
    known = {code for code, is_known in (("P010", unreachable), ("P100", api and api.fault)) if is_known}
    for item in system.look(before, now, settings, readiness):
        # The probes of the server and of OpenIM say more, and wait for longer.
        if not (isinstance(item, Finding) and item.code in known):
            yield item
    elsewhere = sum(not is_silent(each.at_ms, now.at_ms) for each in now.queue.receivers)
    if here:
        yield from receiver.look(here, elsewhere=elsewhere, gateways=system.live_gateways(now.queue), now=time.time())
    if found := of_journal.result():
        yield from journal.look(found, settings, readiness, is_expected=not elsewhere)
    yield from openim_api.look(api, settings, now)
    if of_openim is None:
        yield Check(openim_config.WHAT, "not used", "--openim-config names no directory")
    else:
        yield from of_openim.result() or ()
    probes: list[Probe[Any] | None] = [*of_servers, of_system, of_receiver, of_journal, of_api, of_openim]
    for each in probes:
        if each and each.trouble:
            yield Check(each.name, "cannot tell", each.trouble)
            yield Finding("P090", f"the probe of {each.name} gave no answer: {each.trouble}")


def _of_files(openim: Path, settings: Settings) -> list[Item]:
    """Judges them in the probe too: whatever is in the files, the examination goes on."""
    return [*openim_config.look(*openim_probe.look_at(openim, settings), settings)]


def _snapshots(settings: Settings) -> tuple[Snapshot, Snapshot]:
    poller = Poller(settings)
    before = poller.poll()
    time.sleep(BETWEEN_SECONDS)
    return before, poller.poll()


def _nothing(probe: Probe[Any]) -> Snapshot:
    unknown = Server(error=probe.trouble)
    return Snapshot(time.time_ns() // 1_000_000, QueueState(unknown), PresenceState(unknown))
