"""OpenIM's REST interface, by which presence is compared with OpenIM itself."""

from collections.abc import Iterator
from dataclasses import dataclass

from shared.doctor.findings import Check, Finding, Item
from shared.doctor.openim_config import SILENT_RELEASES
from shared.observe.snapshot import Snapshot
from shared.openim.errors import Fault
from shared.settings import Settings

WHAT = "OpenIM's API"
#: The same as for a gateway (system.py).
SKEW_MOST_MS = 5_000
_CODES: dict[Fault, str] = {
    "away": "P101",
    "untrusted": "P102",
    "secret": "P103",
    "admin": "P104",
    "another": "P105",
    "late": "P106",
    "trouble": "P106",
    "limited": "P107",
}


@dataclass(frozen=True, slots=True)
class ApiFacts:
    """What OpenIM answered, or did not.

    fault, trouble: why it could not be asked who is online; None and "" if it could. is_old: it is 3.8.0 or older.
    release: "" if it does not say. skew_ms: how far its clock is ahead of this machine's, None if it does not say.
    """

    where: str
    fault: Fault | None = None
    trouble: str = ""
    is_old: bool = False
    release: str = ""
    skew_ms: int | None = None

    @property
    def known_release(self) -> str:
        return self.release or ("3.8.0 or older" if self.is_old else "3.8.1 or later")


def look(facts: ApiFacts | None, settings: Settings, now: Snapshot) -> Iterator[Item]:
    """facts: None if it was not asked, or the probe failed. now: what presence knows."""
    if not settings.openim_api:
        yield Check(WHAT, "not used", "PRESENCE_OPENIM_API is not set")
        return
    if facts is None:
        return
    if facts.fault:
        yield Finding(_CODES[facts.fault], facts.trouble)
        yield Check(WHAT, "cannot tell", "it could not be asked")
        return
    yield Check(f"{facts.where}, {facts.known_release}")
    if not settings.reconcile_seconds:
        yield Check("regular comparisons with OpenIM", "not used", "PRESENCE_RECONCILE_SECONDS is 0")
    yield from _of_clock(facts)
    yield from _of_release(facts, settings, now)


def _of_clock(facts: ApiFacts) -> Iterator[Item]:
    if facts.skew_ms is None:
        yield Check("OpenIM's clock", "cannot tell", "its API does not say what time it has")
    elif abs(facts.skew_ms) > SKEW_MOST_MS:
        which = "ahead of" if facts.skew_ms > 0 else "behind"
        yield Finding(
            "P108", f"the clock of {facts.where} is {abs(facts.skew_ms) / 1000:,.1f} s {which} this machine's"
        )


def _of_release(facts: ApiFacts, settings: Settings, now: Snapshot) -> Iterator[Item]:
    release = facts.release.removeprefix("v").partition("-")[0]
    is_heard = bool(now.presence.stats.events or now.queue.gateways.heard)
    is_known = now.presence.known_stats is not None and not now.queue.server.error
    if release in SILENT_RELEASES:
        yield Finding("P086", f"{facts.where} is {release}")
    elif not facts.release and is_known and not is_heard:
        yield Finding("P087", f"{facts.where} is {facts.known_release}, and no callback was ever applied")
    if facts.is_old and settings.online_lease_seconds:
        yield Finding("P061", f"PRESENCE_ONLINE_LEASE_SECONDS is set, and {facts.where} is {facts.known_release}")
