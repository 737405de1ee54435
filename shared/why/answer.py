"""The whole answer, for programs: the sentences and every fact, under names that stay. Pure."""

from dataclasses import asdict
from typing import Any

from shared.events import Event
from shared.memory import Memory
from shared.why import judgement
from shared.why.against import against
from shared.why.facts import Facts, OpenIMSays, Scan, Waiting
from shared.why.judgement import ReadBatch, Session
from shared.why.notes import notes
from shared.why.reasons import Source, reason, since_ms, source_of, status
from shared.why.truth import truth


def as_json(facts: Facts) -> dict[str, Any]:
    """Times are Unix milliseconds. Seqs are strings, since JavaScript loses digits past 2^53. null: not known."""
    memory = facts.memory or Memory({})
    return {
        "user_id": facts.user_id,
        "status": status(facts),
        "since": since_ms(facts) or None,
        "reason": reason(facts),
        "notes": notes(facts),
        "at": facts.at_ms,
        "newest": _newest(memory),
        "sessions": [_session(facts, each) for each in judgement.sessions(memory)],
        "batches": [_batch(each) for each in judgement.read_batches(memory)],
        "sums": [
            {
                "platform_id": each.platform_id,
                "online_seq": _text(each.online_seq),
                "offline_seq": _text(each.offline_seq),
                "mixed_seq": _text(each.mixed_seq),
            }
            for each in memory.sums
        ],
        "forgotten_seq": _text(memory.floor_seq),
        "lease_seconds": facts.lease_ms / 1000 or None,
        "leases_held": facts.leases_held,
        "changes": [each.as_json() for each in facts.changes],
        "ignored": [
            {
                "outcome": each.outcome,
                "at": each.at_ms,
                **_event(each.event),
                "against": against(facts, each),
            }
            for each in facts.ignored
        ],
        "waiting": [_waiting(each) for each in facts.waiting],
        "journals": [asdict(each) for each in facts.journals],
        "similar": list(facts.similar),
        "openim": facts.openim and _openim(facts.user_id, facts.openim),
        "looked_at": {
            "changes": _scan(facts.changes_scan),
            "ignored": _scan(facts.ignored_scan),
            "waiting": _scan(facts.waiting_scan),
        },
        "troubles": list(facts.troubles),
    }


def lease_ends_ms(facts: Facts, session: Session) -> int | None:
    """When the lease of a session that is online ends; None if it has none."""
    began = session.record.lease_began_ms
    return began + facts.lease_ms if session.is_online and facts.lease_ms and began is not None else None


def _newest(memory: Memory) -> dict[str, Any] | None:
    if "seq" not in memory.fields:
        return None
    names = ("seq", "command", "conn_id", "platform_id", "platform", "operation_id")
    updated_at = memory.fields.get("updated_at", "")
    shown: dict[str, Any] = {name: memory.fields.get(name, "") for name in names}
    return shown | {"updated_at": int(updated_at) if updated_at.isdecimal() else None}


def _session(facts: Facts, session: Session) -> dict[str, Any]:
    record = session.record
    sources = {kind: source_of(facts, record.scope, record.name, seq, kind) for kind, seq in record.seqs.items()}
    online, offline = sources.get("online", Source()), sources.get("offline", Source())
    return {
        "scope": record.scope,
        "conn_id": record.name if record.scope == "connection" else "",
        "platform_id": record.platform_id,
        "online": session.is_online,
        "online_seq": _text(record.online_seq),
        "online_operation_id": online.operation_id,
        "online_is_correction": online.is_correction,
        "offline_seq": _text(record.offline_seq),
        "offline_operation_id": offline.operation_id,
        "offline_is_correction": offline.is_correction,
        "covered_by": session.cover,
        "covered_by_seq": _text(session.cover_seq),
        "lease_began": record.lease_began_ms,
        "lease_ends": lease_ends_ms(facts, session),
        "lease_expired": record.has_expired,
    }


def _batch(read: ReadBatch) -> dict[str, Any]:
    return {
        "operation_id": read.batch.operation_id,
        "seq": str(read.batch.seq),
        "events": [{**asdict(each), "seq": str(each.seq)} for each in read.batch.events],
        "says": [
            {
                "platform_id": each.platform_id,
                "status": "online" if each.is_online else "offline",
                "seq": str(each.seq),
                "online": each.online,
                "offline": each.offline,
                "kick_offs": each.kick_offs,
                "rule": each.rule,
            }
            for each in read.readings
        ],
    }


def _event(event: Event) -> dict[str, Any]:
    names = ("command", "conn_id", "platform_id", "operation_id", "received_at")
    return {"seq": str(event.seq), **{name: getattr(event, name) for name in names}}


def _waiting(waiting: Waiting) -> dict[str, Any]:
    return {
        "place": waiting.place,
        "job_id": waiting.job_id,
        **_event(waiting.event),
        "error": waiting.error,
        "next_at": waiting.next_at_ms or None,
    }


def _openim(user_id: str, says: OpenIMSays) -> dict[str, Any]:
    is_answer = not says.trouble
    return {
        "platforms": list(says.platforms) if is_answer else None,
        "recorded": None if says.recorded is None else list(says.recorded),
        "agrees": says.verdict is None if is_answer and says.is_comparable else None,
        "kind": says.verdict.kind if says.verdict else None,
        "says": truth(user_id, says),
        "trouble": says.trouble,
    }


def _scan(scan: Scan) -> dict[str, Any]:
    return {"count": scan.looked_at, "whole": scan.is_whole, "back_to": scan.back_to_ms or None}


def _text(seq: int | None) -> str | None:
    return None if seq is None else str(seq)
