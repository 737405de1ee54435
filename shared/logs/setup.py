"""The form of log lines, for people or as JSON; set up once at the start of each program."""

import json
import logging
import sys
import time
from typing import Any, Literal

from shared.logs.text import safe

#: The fields that a line about an event carries, given as `extra=describe(event)`.
_FIELDS = ("operation_id", "user_id", "command", "seq")
_TIME = "%Y-%m-%dT%H:%M:%S"


class _Text(logging.Formatter):
    converter = staticmethod(time.gmtime)
    default_time_format = _TIME
    default_msec_format = "%s.%03dZ"

    # Ids come from outside: their newlines or escape codes must not look like our lines, nor their blanks like fields.
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        fields = "".join(f" {name}={_word(str(value))}" for name, value in _fields(record).items())
        return safe(super().formatMessage(record)) + fields

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return "\n".join("  " + safe(line) for line in super().formatException(ei).splitlines())


def _word(value: str) -> str:
    """The value as one word, in quotes if it needs them."""
    return safe(value) if value.isprintable() and not set(value) & set(' "=') else json.dumps(value)


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
    """Sends all log lines to standard error. level: as in PRESENCE_LOG_LEVEL."""
    handler = logging.StreamHandler(sys.stderr)
    text = _Text("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(_Json() if style == "json" else text)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
