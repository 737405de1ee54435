"""How times, seqs, scopes and events read in a sentence. What comes from outside is made safe for a terminal here."""

from datetime import UTC, datetime, timedelta
from typing import get_args

from openim_presence import Change
from shared.events import KINDS, Correction, Event
from shared.logs.text import safe
from shared.memory import Record, Scope
from shared.platforms import platform_name

#: A seq in this range is a time in milliseconds, from the years 2001 to 2286. OpenIM sends no others.
CLOCK_LEAST, CLOCK_MOST = 10**12, 10**13
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def instant(unix_ms: int) -> str:
    """UTC, to the millisecond."""
    try:
        moment = _EPOCH + timedelta(milliseconds=unix_ms)
    except OverflowError:
        return f"{unix_ms} ms"
    return f"{moment:%Y-%m-%d %H:%M:%S}.{unix_ms % 1000:03}Z"


def lasting(milliseconds: int) -> str:
    """Roughly how long that is."""
    seconds = max(0, milliseconds) / 1000
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def is_clock(seq: int) -> bool:
    return CLOCK_LEAST <= seq <= CLOCK_MOST


def stamped(seq: int, operation_id: str = "", is_correction: bool = False) -> str:
    """What identifies an event: its stamp, and its operationID or that it is a correction of ours."""
    source = f"operationID {safe(operation_id)}" if operation_id else "a correction by presence reconcile"
    added = [source] if operation_id or is_correction else []
    if is_clock(seq):
        return f"stamped {instant(seq)} ({', '.join([f'seq {seq}', *added])})"
    return f"with seq {seq}" + (f" ({source})" if added else "")


def at(seq: int) -> str:
    """The same in short: only its stamp."""
    return f"of {instant(seq)}" if is_clock(seq) else f"with seq {seq}"


def in_columns(seq: int, operation_id: str = "", is_correction: bool = False) -> str:
    """The same for a table."""
    source = f"  operationID {safe(operation_id)}" if operation_id else "  presence reconcile" if is_correction else ""
    return f"{instant(seq) if is_clock(seq) else '':<24}  seq {seq:<13}{source}"


def scope_name(scope: Scope, name: str, platform_id: int) -> str:
    if scope == "user":
        return "the user as a whole"
    if scope == "platform":
        return platform_name(platform_id)
    return f"connection {safe(name)}" + (f" ({platform_name(platform_id)})" if platform_id else "")


def named(record: Record) -> str:
    return scope_name(record.scope, record.name, record.platform_id)


def scope_of(event: Event) -> tuple[Scope, str]:
    """What an event is about."""
    if event.conn_id:
        return "connection", event.conn_id
    return ("platform", str(event.platform_id)) if event.platform_id else ("user", "")


def described(event: Event) -> str:
    scope = scope_name(*scope_of(event), event.platform_id)
    return f"{_kind(event.command)} of {scope}, {stamped(event.seq, event.operation_id)}"


def described_change(change: Change) -> str:
    """The event, or the end of a lease, that changed the status."""
    platform_id = int(change.platform_id) if change.platform_id.isdecimal() else 0
    scope: Scope = "connection" if change.conn_id else "platform" if platform_id else "user"
    name = scope_name(scope, change.conn_id or change.platform_id, platform_id)
    if change.command == "lease_expired":
        return f"end of the lease of {name}, at {instant(change.changed_at)}"
    seq = int(change.seq) if change.seq.isdecimal() else 0
    return f"{_kind(change.command)} of {name}, {stamped(seq, change.operation_id)}"


def _kind(command: str) -> str:
    if command in get_args(Correction):
        return f"{KINDS[command]} correction"
    return (
        "kick-off"
        if "KickOff" in command
        else f"{KINDS[command]} event"
        if command in KINDS
        else safe(f"event {command}")
    )


def times(count: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(count, f"{count:,} times")


def counted(count: int, noun: str) -> str:
    """`1 event`, `2 events`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def listed(items: list[str], most: int = 5) -> str:
    """`a`, `a and b`, `a, b and 7 more`."""
    shown = items[:most]
    if len(items) > most:
        shown = [*shown, f"{len(items) - most:,} more"]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
