"""`presence why`: why a user is shown as they are."""

import json
import sys
from collections.abc import Iterable, Iterator

import click

from openim_presence import Change
from shared.cli.running import load_settings
from shared.cli.text import safe
from shared.ignored import Ignored
from shared.memory import Memory
from shared.platforms import platform_name
from shared.redis.client import connect
from shared.why import answer, judgement
from shared.why.against import against
from shared.why.collector import look_up
from shared.why.facts import Facts, Scan, Waiting
from shared.why.judgement import Cover, ReadBatch, Session
from shared.why.notes import notes
from shared.why.reasons import RULES, reason, source_of
from shared.why.truth import where
from shared.why.words import described, in_columns, instant, lasting, named, scope_name, times

#: For one answer of a server.
ANSWER_SECONDS = 3.0
#: Sessions; --json has all.
ONLINE_SHOWN, CLOSED_SHOWN = 10, 5
_CLOSED_BY: dict[Cover, str] = {
    "never": "no online event is known",
    "lease": "its lease ran out",
    "user": "an offline event of the user as a whole is newer",
    "platform": "the platform's offline event is newer",
    "connection": "its offline event is newer",
}


@click.command()
@click.argument("user", metavar="USER")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def why(user: str, as_json: bool) -> None:
    """Says why a user is shown online or offline: the reason in words, then every fact behind it.

    The facts are the sessions, with what covers them and when their leases end; the batches of callbacks, and how the
    rules read them; the last changes; the last events that changed nothing, and why; what of this user waits, is
    tried again or has failed; and, with PRESENCE_OPENIM_API, what OpenIM itself says. The exit code is 1 if some of it
    could not be read, or the key is not a hash. Put -- before an id that begins with a dash.

    \b
    Examples:
      presence why alice
      presence why alice --json | jq -r .reason
    """
    config = load_settings()
    presence, queue = (connect(url, timeout=ANSWER_SECONDS) for url in (config.redis_url, config.queue_url))
    with presence, queue:
        facts = look_up(presence, queue, config, user)
    click.echo(json.dumps(answer.as_json(facts)) if as_json else "\n".join(_lines(facts)))
    if facts.troubles or facts.key_type:
        sys.exit(1)


def _lines(facts: Facts) -> Iterator[str]:
    memory = facts.memory or Memory({})
    yield reason(facts)
    yield from (f"  . {note}" for note in notes(facts))
    tables: dict[str, Iterable[str]] = {
        "sessions": _sessions(facts, memory),
        "batches": (line for batch in reversed(judgement.read_batches(memory)) for line in _batch(batch)),
        "older batches": _sums(memory),
        "newest event": _newest(memory),
        "changes": list(map(_change, facts.changes)) or _how_far(facts.changes_scan),
        "no effect": [line for each in facts.ignored for line in _ignored(facts, each)] or _how_far(facts.ignored_scan),
        "waiting": map(_waiting, facts.waiting),
        "OpenIM": _openim(facts),
    }
    rows = [row for name, lines in tables.items() for row in _rows(name, lines)]
    yield from ["", *rows] if rows else []


def _change(change: Change) -> str:
    what = f"{safe(change.previous) or 'unknown'} -> {safe(change.status)}"
    operation = f"  operationID {safe(change.operation_id)}" if change.operation_id else ""
    return f"{instant(change.changed_at)}  {what:<18}  {safe(change.command)}{operation}"


def _ignored(facts: Facts, ignored: Ignored) -> Iterator[str]:
    yield f"{instant(ignored.event.received_at)}  {ignored.outcome}: the {described(ignored.event)}"
    yield f"  {against(facts, ignored)}"


def _waiting(waiting: Waiting) -> str:
    return f"{waiting.place}: the {described(waiting.event)}; batch {safe(waiting.job_id)}"


def _openim(facts: Facts) -> Iterator[str]:
    says = facts.openim
    if says and not says.trouble:
        yield f"its gateways    {where(says.platforms)}"
        if says.recorded is not None:
            yield f"its own record  {where(says.recorded)}"


def _sessions(facts: Facts, memory: Memory) -> Iterator[str]:
    judged = judgement.sessions(memory)
    online = [each for each in judged if each.is_online]
    for what, some, most in (("online", online, ONLINE_SHOWN), ("closed", judged[len(online) :], CLOSED_SHOWN)):
        for session in some[:most]:
            yield from _session(facts, session)
        if len(some) > most:
            yield f"and {len(some) - most:,} more that are {what} (--json has all)"
    if memory.floor_seq is not None:
        yield f"closed connections up to seq {memory.floor_seq} are forgotten"


def _session(facts: Facts, session: Session) -> Iterator[str]:
    record = session.record
    yield f"{named(record)}: {'online' if session.cover is None else f'offline, {_CLOSED_BY[session.cover]}'}"
    for kind, seq in record.seqs.items():
        source = source_of(facts, record.scope, record.name, seq, kind)
        yield f"  {kind:<8}{in_columns(seq, *source)}"
    if session.cover_seq is not None and session.cover_seq != record.offline_seq:
        yield f"  {'covered':<8}{in_columns(session.cover_seq)}"
    if (ends := answer.lease_ends_ms(facts, session)) is not None:
        yield f"  {'lease':<8}{instant(ends)}, which is {_from_now(ends - facts.at_ms)}"


def _from_now(milliseconds: int) -> str:
    return f"in {lasting(milliseconds)}" if milliseconds >= 0 else f"{lasting(-milliseconds)} ago"


def _batch(read: ReadBatch) -> Iterator[str]:
    yield in_columns(read.batch.seq, read.batch.operation_id)
    for each in read.readings:
        said = [
            f"{name} {times(count)}" for name, count in (("online", each.online), ("offline", each.offline)) if count
        ]
        rule = f"; {RULES[each.rule]}" if each.is_mixed else ""
        yield f"  {platform_name(each.platform_id)} {' and '.join(said)}{rule}"


def _sums(memory: Memory) -> Iterator[str]:
    for each in memory.sums:
        for kind, seq in (("online", each.online_seq), ("offline", each.offline_seq)):
            if seq is not None:
                yield f"{platform_name(each.platform_id)} {kind:<8}{in_columns(seq)}"


def _newest(memory: Memory) -> Iterator[str]:
    fields = memory.fields
    if not fields.get("seq", "").isdecimal():
        return
    conn_id, platform_id = fields.get("conn_id", ""), fields.get("platform_id", "")
    platform = int(platform_id) if platform_id.isdecimal() else 0
    scope = scope_name("connection" if conn_id else "platform" if platform else "user", conn_id, platform)
    yield f"{safe(fields.get('command', ''))} of {scope}"
    yield f"  {'stamped':<8}{in_columns(int(fields['seq']), fields.get('operation_id', ''))}"
    if (updated_at := fields.get("updated_at", "")).isdecimal():
        yield f"  {'updated':<8}{instant(int(updated_at))}"


def _how_far(scan: Scan) -> Iterator[str]:
    """How far a search got that found nothing and did not come to the end."""
    if scan.back_to_ms:
        yield f"none among the newest {scan.looked_at:,} of all users, which go back to {instant(scan.back_to_ms)}"


def _rows(name: str, lines: Iterable[str]) -> Iterator[str]:
    for index, line in enumerate(lines):
        yield f"{name if index == 0 else '':<14}{line}".rstrip()
