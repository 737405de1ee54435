"""Log lines, for people or as JSON; made once at the start of each program."""

import json
import logging
import sys
import time
from typing import Any, Literal

#: What a line about an event carries, given as `extra=describe(event)`.
_FIELDS = ("operation_id", "user_id", "command", "seq")
_TIME = "%Y-%m-%dT%H:%M:%S"


class _Text(logging.Formatter):
    converter = staticmethod(time.gmtime)
    default_time_format = _TIME
    default_msec_format = "%s.%03dZ"

    def format(self, record: logging.LogRecord) -> str:
        # Ids come from outside: no newline or escape code of theirs may look like a line of ours.
        line = super().format(record) + "".join(f" {name}={value}" for name, value in _fields(record).items())
        if record.exc_info:
            return line
        return line.encode("unicode_escape").decode() if not line.isprintable() else line


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    values = record.__dict__
    return {name: values[name] for name in _FIELDS if name in values}


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime(_TIME, time.gmtime(record.created)) + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


Style = Literal["text", "json"]


def set_up(level: str, style: Style) -> None:
    """level: as in PRESENCE_LOG_LEVEL. Everything goes to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    text = _Text("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(_Json() if style == "json" else text)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
