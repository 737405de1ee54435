"""What a receiver process says of itself once a second, in a hash on the queue's server."""

import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Report:
    """One process's last report. Times are Unix milliseconds by the clock of the queue's server.

    name: host and process. at_ms: when it reported. mark_ms: all events received before are on the queue. events,
    bytes: what its journal holds that the queue does not have. trouble: why it refuses events, or "".
    healthy_at_ms: when it last had no trouble. skew_ms: how far its own clock is ahead of the queue server's; below 0
    where it is behind.
    """

    name: str
    at_ms: int
    mark_ms: int
    events: int
    bytes: int
    trouble: str = ""
    healthy_at_ms: int = 0
    skew_ms: int = 0


def encode(report: Report) -> str:
    """As it stands in the hash. There the times are by the receiver's own clock, as older releases expect."""
    fields = {
        "at": report.at_ms + report.skew_ms,
        "well": report.healthy_at_ms + report.skew_ms,
        "mark": report.mark_ms + report.skew_ms,
        "events": report.events,
        "bytes": report.bytes,
        "trouble": report.trouble,
        "skew": report.skew_ms,
    }
    return json.dumps(fields)


def decode(name: bytes, text: bytes) -> Report:
    """Raises ValueError where the text is no report. Of an older release `skew` is missing, and 0."""
    try:
        fields = json.loads(text)
        at, mark, events, size = (int(fields[field]) for field in ("at", "mark", "events", "bytes"))
        healthy_at, skew = int(fields.get("well", at)), int(fields.get("skew", 0))
        trouble = str(fields.get("trouble", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError("no receiver's report") from None
    shown = name.decode("utf-8", "backslashreplace")
    return Report(shown, at - skew, mark - skew, events, size, trouble, healthy_at - skew, skew)
