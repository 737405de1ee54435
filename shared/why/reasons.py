"""The one sentence that says why, or two if a batch was read by a rule. Pure: facts in, words out."""

from typing import NamedTuple, get_args

from shared.events import KINDS, Correction, Kind
from shared.logs.text import safe
from shared.memory import Memory, Scope
from shared.platforms import platform_name
from shared.why import judgement
from shared.why.facts import Facts
from shared.why.judgement import ReadBatch, Reading, Session
from shared.why.words import at, counted, instant, lasting, listed, named, stamped, times

#: By the rules of docs/redis-keys.md.
RULES: dict[judgement.Rule, str] = {
    "kick_offs": "its offline events are all kick-offs, which end a connection that was replaced: online (rule 1)",
    "more_online": "more online than offline events mean that a connection is left: online (rule 1)",
    "kept": "it was online before and the batch changes nothing else, so another connection is left: online (rule 2)",
    "fewer_online": "more offline than online events: offline (rule 3)",
    "was_offline": "it was not online before, so it came and went: offline (rule 3)",
    "others_change": "the batch changes another platform too, so this one changed as well: offline (rule 3)",
}


def status(facts: Facts) -> str:
    """`online` or `offline`, as the hash has it; else `unknown`."""
    said = facts.memory.fields.get("status", "") if facts.memory else ""
    return said if said in ("online", "offline") else "unknown"


def since_ms(facts: Facts) -> int:
    """When the status changed last, Unix milliseconds; 0 if it is not known."""
    text = facts.memory.fields.get("changed_at", "") if facts.memory else ""
    return int(text) if text.isdecimal() else 0


def reason(facts: Facts) -> str:
    who, memory = safe(facts.user_id), facts.memory
    if facts.key_type:
        return f"Nothing is known of {who}: the key {safe(facts.prefix)}:{who} is a {safe(facts.key_type)}, not a hash."
    if memory is None:
        return _unknown(facts)
    if status(facts) == "unknown":
        return f"Nothing is known of {who}: the hash has no valid status, so another program wrote it."
    sessions = judgement.sessions(memory)
    judged = "online" if any(each.is_online for each in sessions) else "offline"
    because = _online(memory, facts, sessions) if judged == "online" else _offline(memory, facts, sessions)
    if judged != status(facts):
        return (
            f"{who} is shown {status(facts)}, but what is remembered says {judged}, so another program or a "
            f"mistake has changed the hash: {because}"
        )
    since = since_ms(facts)
    when = f" for {lasting(facts.at_ms - since)}, since {instant(since)}" if since else ""
    return f"{who} has been {judged}{when}: {because}"


def _unknown(facts: Facts) -> str:
    who = safe(facts.user_id)
    if facts.waiting:
        count = len(facts.waiting)
        return (
            f"Nothing is known of {who}: {counted(count, 'event')} {'waits' if count == 1 else 'wait'} to be applied."
        )
    if facts.changes:
        last = facts.changes[0]
        if last.command == "forgotten":
            return f"Nothing is known of {who} any more: somebody ran `presence forget` at {instant(last.changed_at)}."
        how = (
            "for longer than PRESENCE_RETENTION_SECONDS" if facts.retention_seconds else "and somebody deleted the key"
        )
        return f"Nothing is known of {who} any more: {safe(last.status)} since {instant(last.changed_at)}, {how}."
    if any(each.outcome == "stale" for each in facts.ignored):
        return f"Nothing is known of {who}: the events that came were received longer ago than users are remembered."
    return f"Nothing is known of {who}: no event of this user was ever applied here, or all of it is forgotten."


def _online(memory: Memory, facts: Facts, sessions: list[Session]) -> str:
    online = [each for each in sessions if each.is_online]
    newest = max(online, key=lambda each: each.record.online_seq or 0)
    record, seq = newest.record, newest.record.online_seq or 0
    batch = deciding_batch(memory, record.platform_id, seq, is_online=True) if record.scope == "platform" else None
    event = _event(facts, record.scope, record.name, seq, "online")
    said = f"the last online event of {named(record)} is {event}, and no newer offline event covers it."
    if len(online) > 1:
        names = listed([named(each.record) for each in online])
        said = f"{len(online)} sessions are online, {names}. For the newest, {said}"
    if batch and batch[1].is_mixed:
        return f"{said} {_by_rule(*batch)}"
    covers = judgement.covers(memory, record.scope, record.name, record.platform_id)
    if covers and covers[0][1] == seq:
        return f"{said} An offline event has the same seq; a tie goes to online."
    return said


def _offline(memory: Memory, facts: Facts, sessions: list[Session]) -> str:
    opened = [each for each in sessions if each.record.online_seq is not None]
    if not opened:
        return _never_online(facts, sessions)
    newest = max(opened, key=lambda each: each.record.online_seq or 0)
    others = len(opened) - 1
    rest = {
        0: " No other session is remembered.",
        1: " The other session that is remembered is closed as well.",
    }.get(others, f" The {others} other sessions that are remembered are closed as well.")
    return _closed(memory, facts, newest) + rest


def _closed(memory: Memory, facts: Facts, session: Session) -> str:
    record, name, opened = session.record, named(session.record), at(session.record.online_seq or 0)
    if session.cover == "lease":
        seq = record.online_seq or 0
        event = _event(facts, record.scope, record.name, seq, "online")
        return f"the lease of {name} ran out, since nothing renewed it after its last online event, {event}."
    scope, seq = session.cover, session.cover_seq or 0
    if scope == "platform":
        return _closed_platform(memory, facts, session)
    if scope == "user":
        event = _event(facts, "user", "", seq, "offline")
        return f"an offline event of the user as a whole, {event}, covers every session; the last was {name}, {opened}."
    event = _event(facts, "connection", record.name, seq, "offline")
    return f"the offline event of {name}, {event}, is newer than its last online event, {opened}."


def _closed_platform(memory: Memory, facts: Facts, session: Session) -> str:
    """Closed by an offline event of the platform: the session is the platform's own, or a connection's on it."""
    record, seq = session.record, session.cover_seq or 0
    platform, opened = platform_name(record.platform_id), at(record.online_seq or 0)
    event = _event(facts, "platform", str(record.platform_id), seq, "offline")
    batch = deciding_batch(memory, record.platform_id, seq, is_online=False)
    if batch and batch[1].is_mixed:
        return f"{platform} ended offline in the batch {event}. {_by_rule(*batch)}"
    covered = f"the last online event of {named(record)}" if record.scope == "connection" else "its last online event"
    mixed = any((each.platform_id, each.mixed_seq) == (record.platform_id, seq) for each in memory.sums)
    added = " Its batch, which is too old to be shown, named the platform both online and offline." if mixed else ""
    return f"the offline event of {platform}, {event}, is newer than {covered}, {opened}.{added}"


def _never_online(facts: Facts, sessions: list[Session]) -> str:
    closed = [each.record for each in sessions if each.record.offline_seq is not None]
    if not closed:
        return "no session is remembered."
    newest = max(closed, key=lambda record: record.offline_seq or 0)
    seq = newest.offline_seq or 0
    event = _event(facts, newest.scope, newest.name, seq, "offline")
    return f"only offline events are known of this user, the newest of {named(newest)}, {event}."


def _by_rule(batch: ReadBatch, reading: Reading) -> str:
    name, rule = platform_name(reading.platform_id), RULES[reading.rule]
    return f"That batch names {name} online {times(reading.online)} and offline {times(reading.offline)}; {rule}."


def deciding_batch(memory: Memory, platform_id: int, seq: int, *, is_online: bool) -> tuple[ReadBatch, Reading] | None:
    """The remembered batch that says of a platform what it is, with this seq."""
    for batch in reversed(judgement.read_batches(memory)):
        for each in batch.readings:
            if (each.platform_id, each.seq, each.is_online) == (platform_id, seq, is_online):
                return batch, each
    return None


class Source(NamedTuple):
    """What is still known of an event. is_correction: it came from `presence reconcile`."""

    operation_id: str = ""
    is_correction: bool = False


def source_of(facts: Facts, scope: Scope, name: str, seq: int, kind: Kind) -> Source:
    """The source of an event of that scope, as far as it is still known."""
    memory = facts.memory or Memory({})
    for batch in memory.batches if scope == "platform" else ():
        for event in batch.events:
            same = (str(event.platform_id), event.seq, event.kind == "online") == (name, seq, kind == "online")
            if same and batch.operation_id:  # else it may be a correction
                return Source(batch.operation_id)
    names = ("seq", "command", "conn_id", "platform_id", "operation_id")
    shown = [{field: memory.fields.get(field, "") for field in names}]
    shown += [{field: getattr(change, field) for field in names} for change in facts.changes]
    for each in shown:
        conn_id, platform_id, command = each["conn_id"], each["platform_id"], each["command"]
        its_scope = ("connection", conn_id) if conn_id else ("platform", platform_id) if platform_id else ("user", "")
        if its_scope == (scope, name) and each["seq"] == str(seq) and KINDS.get(command) == kind:
            return Source(each["operation_id"], command in get_args(Correction))
    return Source()


def _event(facts: Facts, scope: Scope, name: str, seq: int, kind: Kind) -> str:
    return stamped(seq, *source_of(facts, scope, name, seq, kind))
