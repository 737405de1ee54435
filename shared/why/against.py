"""Why an event changed nothing, by what is remembered now. Pure.

Whatever prevailed over an event then still prevails now, since seqs only rise. So nothing needs to be recorded when it
happens.
"""

from collections.abc import Iterator

from shared.events import Event
from shared.ignored import Ignored
from shared.memory import Memory, Scope
from shared.platforms import platform_name
from shared.why import judgement
from shared.why.facts import Facts
from shared.why.reasons import RULES
from shared.why.words import scope_name, scope_of, stamped

_COVERED_BY = {"user": "the user as a whole", "connection": "that connection", "platform": "that platform"}


def against(facts: Facts, ignored: Ignored) -> str:
    """What prevails over the event, or has it already: the rest of a sentence."""
    return next(_found(facts, ignored))


def _found(facts: Facts, ignored: Ignored) -> Iterator[str]:
    """The likeliest first."""
    event, memory = ignored.event, facts.memory
    if ignored.outcome == "duplicate":
        yield "what is remembered has it already"
    if memory is None:
        if facts.retention_seconds:
            yield "it was received longer ago than users are remembered, and nothing was known of the user"
        yield "what was known of the user then is no longer remembered"
        return
    scope, name = scope_of(event)
    if scope == "platform":
        yield from _read_otherwise(memory, event)
    if event.kind == "online":
        yield from _closed(memory, scope, name, ignored)
    record = memory.record(scope, name)
    newer = record and (record.online_seq if event.kind == "online" else record.offline_seq)
    if isinstance(newer, int) and newer > event.seq:
        yield f"{scope_name(scope, name, event.platform_id)} has a newer {event.kind} event, {stamped(newer)}"
    if scope == "connection" and memory.floor_seq is not None and event.seq <= memory.floor_seq:
        yield f"the connection is forgotten, as are all that were closed up to seq {memory.floor_seq}"
    if facts.retention_seconds and event.received_at < ignored.at_ms - facts.retention_seconds * 1000:
        yield "it was received longer ago than users are remembered (PRESENCE_RETENTION_SECONDS)"
    if scope == "platform":
        yield "its batch says the same with it as without it"
    yield "what was newer is no longer remembered"


def _read_otherwise(memory: Memory, event: Event) -> Iterator[str]:
    """The batch of the event, if it names the platform both online and offline, and by the rules contradicts it."""
    for batch in judgement.read_batches(memory):
        if batch.batch.operation_id == event.operation_id:
            for each in batch.readings:
                if (
                    each.platform_id == event.platform_id
                    and each.is_mixed
                    and each.is_online != (event.kind == "online")
                ):
                    platform = platform_name(each.platform_id)
                    yield f"its batch names {platform} both online and offline, and {RULES[each.rule]}"


def _closed(memory: Memory, scope: Scope, name: str, ignored: Ignored) -> Iterator[str]:
    """What closes the session that the online event would have opened."""
    record = memory.record(scope, name)
    platform_id = record.platform_id if record else ignored.event.platform_id
    for cover, seq in judgement.covers(memory, scope, name, platform_id):
        if seq > ignored.event.seq:
            yield f"the offline event of {_COVERED_BY[cover]} is newer, {stamped(seq)}"
    if record and record.has_expired:
        yield "the lease of its session had run out, and only a newer online event opens that again"
