"""Text for a terminal."""

import codecs
import sys
import time
from collections.abc import Iterable, Iterator

from shared.errors import PresenceError
from shared.logs.text import safe

__all__ = ["age", "moment", "named", "safe"]


def named(users: Iterable[str]) -> Iterator[str]:
    """The users that a command was given; a dash stands for those on standard input. Raises PresenceError."""
    for user in users:
        if user != "-":
            yield user
        elif sys.stdin:
            yield from _names_in(sys.stdin.buffer)
        else:  # the parent process closed it
            raise PresenceError("there is no standard input to read from")


def _names_in(lines: Iterable[bytes]) -> Iterator[str]:
    """The names in a list, one a line, as editors on any system save it.

    A byte order mark, CRLF, blank lines and blanks at the ends are not part of a name.
    """
    mark = codecs.BOM_UTF8  # only before the first line
    for line in lines:
        if name := line.removeprefix(mark).decode(errors="surrogateescape").strip():
            yield name
        mark = b""


def moment(unix_ms: int) -> str:
    """The date and the time of day, UTC, to the second."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(unix_ms / 1000))
    except (OverflowError, ValueError, OSError):
        return f"{unix_ms} ms"


def age(unix_ms: int, now_ms: int | None = None) -> str:
    """Roughly how long before `now_ms` that was; the default is now, by this machine's clock."""
    seconds = max(0, (time.time_ns() // 1_000_000 if now_ms is None else now_ms) - unix_ms) / 1000
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
