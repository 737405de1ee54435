"""What each receiver process reports about itself once a second, in a hash on the queue's server."""

import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Report:
    """One process's last report. Times are Unix milliseconds by the clock of the queue's server.

    name: host and process, for people. at_ms: when it reported. watermark_ms: all events received before then are on
    the queue; 0 if that is unknown, since some files cannot be read. events, bytes: what its journal holds that the
    queue does not have. trouble: why it refuses events, or "". healthy_at_ms: when it last had no trouble. skew_ms: how
    far its own clock is ahead of the queue server's; negative if it is behind. id: identifies the receiver, also after
    a restart; two receivers may have one name. unreadable: journal files and folders that cannot be read. kept_bytes:
    what the journal keeps although the queue has it. kept_reason: why it is kept for longer than usual, or "".
    """

    name: str
    at_ms: int
    watermark_ms: int
    events: int
    bytes: int
    trouble: str = ""
    healthy_at_ms: int = 0
    skew_ms: int = 0
    id: str = ""
    unreadable: int = 0
    kept_bytes: int = 0
    kept_reason: str = ""


def encode(report: Report) -> str:
    """The value of the hash's field `report.id`; its times are by the receiver's own clock, as older workers expect."""
    fields = {
        "name": report.name,
        "at": report.at_ms + report.skew_ms,
        "well": report.healthy_at_ms + report.skew_ms,
        "mark": report.watermark_ms and report.watermark_ms + report.skew_ms,
        "events": report.events,
        "bytes": report.bytes,
        "trouble": report.trouble,
        "skew": report.skew_ms,
        "unreadable": report.unreadable,
        "kept": report.kept_bytes,
        "kept_reason": report.kept_reason,
    }
    return json.dumps(fields)


def decode(field: bytes, text: bytes) -> Report:
    """Reads a field of the hash and its value, also of older releases. Raises ValueError if it is not a report."""
    try:
        said = json.loads(text)
        at, mark, events, size = (int(said[name]) for name in ("at", "mark", "events", "bytes"))
        healthy_at, skew = int(said.get("well", at)), int(said.get("skew", 0))
        unreadable, kept = int(said.get("unreadable", 0)), int(said.get("kept", 0))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError("not a receiver's report") from None
    key = field.decode("utf-8", "backslashreplace")
    return Report(
        name=str(said.get("name", key)),
        at_ms=at - skew,
        watermark_ms=mark and mark - skew,
        events=events,
        bytes=size,
        trouble=str(said.get("trouble", "")),
        healthy_at_ms=healthy_at - skew,
        skew_ms=skew,
        id=key,
        unreadable=unreadable,
        kept_bytes=kept,
        kept_reason=str(said.get("kept_reason", "")),
    )
