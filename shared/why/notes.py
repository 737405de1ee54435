"""What else a person should know about a user: what may still change the answer, and what to check. Pure."""

from collections.abc import Iterator

from shared.logs.text import safe
from shared.memory import Memory
from shared.why import judgement
from shared.why.against import against
from shared.why.facts import Facts, Place, Waiting
from shared.why.judgement import Session
from shared.why.reasons import reason, since_ms, status
from shared.why.truth import truth
from shared.why.words import (
    CLOCK_MOST,
    counted,
    described,
    described_change,
    instant,
    is_clock,
    lasting,
    listed,
    named,
    sentence,
)

#: OpenIM 3.8.2 and later repeats the online callback of each user online at least every 20 minutes.
RENEWAL_MS = 1_300_000
#: A lease that ends within this time is mentioned.
ENDS_SOON_MS = 60_000
#: The clocks of two machines may differ by this much.
CLOCK_MS = 1000

_PLACES: dict[Place, str] = {
    "failed": "could not be applied (presence failed list)",
    "retrying": "cannot be applied and will be tried again",
    "running": "is with a worker",
    "queued": "waits on the queue",
}


def notes(facts: Facts) -> list[str]:
    """Sentences, the most urgent first."""
    return [
        *(f"The answer may lack something: {safe(trouble)}." for trouble in facts.troubles),
        *_of_openim(facts),
        *_of_waiting(facts),
        *(_of_memory(facts, facts.memory) if facts.memory else _of_nothing(facts)),
        *_of_ignored(facts),
        *_of_change(facts),
    ]


def _of_openim(facts: Facts) -> Iterator[str]:
    if facts.openim and not facts.openim.trouble:  # that is among the others
        yield truth(facts.user_id, facts.openim)


def _of_waiting(facts: Facts) -> Iterator[str]:
    for place, what in _PLACES.items():
        if found := [each for each in facts.waiting if each.place == place]:
            yield _waits(facts, found, what)
    if facts.waiting_scan.looked_at and not facts.waiting_scan.is_whole:
        yield f"More may wait: only {facts.waiting_scan.looked_at:,} batches of the queue were looked at."
    for journal in facts.journals:
        since = f", the oldest since {instant(journal.since_ms)}" if journal.since_ms else ""
        yield (
            f"The journal of receiver {safe(journal.receiver)} has {counted(journal.events, 'event')} that the queue "
            f"does not have yet{since}. Some may be this user's."
        )
    if facts.workers == 0:
        yield "No worker is alive, so nothing is applied. Start one: python -m worker."


def _waits(facts: Facts, found: list[Waiting], what: str) -> str:
    newest = max(found, key=lambda each: each.event.seq)
    events = f"An event of this user {what}" if len(found) == 1 else f"{len(found):,} events: the newest {what}"
    again = f" in {lasting(newest.next_at_ms - facts.at_ms)}" if newest.next_at_ms else ""
    error = f" The error: {safe(newest.error)}." if newest.error else ""
    return f"{events}{again}: the {described(newest.event)}.{error}"


def _of_nothing(facts: Facts) -> Iterator[str]:
    """About a user who is not known, or whose key is not a hash."""
    if facts.key_type:
        yield (
            "Nothing can be applied to this user until the key is renamed, or deleted with presence forget. Then run "
            "presence failed requeue for what failed meanwhile."
        )
        return
    if facts.is_empty:
        yield (
            f"No event of any user was ever applied under the prefix {safe(facts.prefix)} on this server: check "
            "PRESENCE_REDIS_URL and PRESENCE_KEY_PREFIX, and presence status."
        )
    if facts.similar:
        yield f"These users are known, and ids are compared letter by letter: {listed([*map(repr, facts.similar)])}."
    if facts.waiting or facts.changes:
        return
    if not facts.is_empty:
        yield f"Check the spelling of the id and the key prefix, which is {safe(facts.prefix)}."
        yield (
            "Check whether OpenIM sent anything: its log has each callback by operationID. A callback that was refused "
            "is in the receiver's log, with the reason."
        )


def _of_memory(facts: Facts, memory: Memory) -> Iterator[str]:
    if memory.unreadable:
        names = listed([safe(name) for name in memory.unreadable])
        yield f"These fields of the hash make no sense and were left out: {names}. Another program may write to it."
    sessions = judgement.sessions(memory)
    yield from _of_stamps(facts, sessions)
    if status(facts) == "online":
        yield from _of_online(facts, [each for each in sessions if each.is_online])
    elif sessions and all(each.record.online_seq is None for each in sessions):
        yield (
            "If this user was online before, online callbacks do not arrive: check that they are enabled in OpenIM, as "
            "offline callbacks are."
        )
    if memory.unsent:
        changes = counted(memory.unsent, "change")
        yield f"{sentence(changes)} of this user {'is' if memory.unsent == 1 else 'are'} not on the change feed yet."


def _of_stamps(facts: Facts, sessions: list[Session]) -> Iterator[str]:
    """About the event with the highest stamp, if that is in the future."""
    stamps = [
        (seq, f"The newest {kind} event of {named(each.record)}")
        for each in sessions
        for kind, seq in each.record.seqs.items()
    ]
    seq, event = max(stamps, default=(0, ""))
    lead = lasting(seq - facts.at_ms)
    if seq > CLOCK_MOST:
        yield f"{event} has seq {seq}, which is not a time and prevails over whatever OpenIM sends: {_anew(facts)}."
    elif seq > facts.at_ms + ENDS_SOON_MS:
        yield f"{event} is stamped {lead} in the future, and prevails over all events until then: {_anew(facts)}."
    elif seq > facts.at_ms + CLOCK_MS:
        yield f"{event} is stamped {lead} in the future: the clock of its gateway is ahead. Keep NTP running there."


def _anew(facts: Facts) -> str:
    return f"presence forget {safe(facts.user_id)} starts afresh"


def _of_online(facts: Facts, online: list[Session]) -> Iterator[str]:
    if facts.lease_ms:
        yield from _of_leases(facts, online)
        return
    oldest = min((each.record.online_seq or 0 for each in online), default=0)
    if is_clock(oldest) and facts.at_ms - oldest > RENEWAL_MS:
        yield (
            f"Nothing has renewed a session for {lasting(facts.at_ms - oldest)}, and leases are off: if its gateway "
            "crashed or OpenIM lost the offline callback, it stays online (PRESENCE_ONLINE_LEASE_SECONDS)."
        )


def _of_leases(facts: Facts, online: list[Session]) -> Iterator[str]:
    """About the lease that ends first."""
    leased = [(each.record.lease_began_ms, named(each.record)) for each in online if each.record.lease_began_ms]
    if without := len(online) - len(leased):
        has = "session has" if without == 1 else "sessions have"
        yield f"{without:,} {has} no lease yet: workers give one to everybody when leases are turned on."
    began, name = min(leased, default=(facts.at_ms, ""))
    left = (began or 0) + facts.lease_ms - facts.at_ms
    if left <= 0:
        why = safe(facts.leases_held) or "a worker closes it within seconds"
        yield f"The lease of {name} ended {lasting(-left)} ago and has not run out yet: {why}."
    elif leased and left <= ENDS_SOON_MS:
        yield f"The lease of {name} ends in {lasting(left)}, unless an online event renews it."


def _of_ignored(facts: Facts) -> Iterator[str]:
    """The last stale event, if it came after the last change and contradicts the status."""
    for each in facts.ignored:
        event = each.event
        if each.outcome == "stale" and event.kind != status(facts) and event.received_at >= since_ms(facts):
            yield f"Stale, at {instant(event.received_at)}: the {described(event)}; {against(facts, each)}."
            return


def _of_change(facts: Facts) -> Iterator[str]:
    """What changed the status, if the reason names something newer."""
    change = facts.changes[0] if facts.changes else None
    if change and facts.memory and change.changed_at == since_ms(facts) and change.seq not in reason(facts):
        yield f"The status changed earlier, with the {described_change(change)}."
