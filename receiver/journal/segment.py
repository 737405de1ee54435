"""One file of the journal: a line for each event, with a checksum before it.

    3f0c9a1e {"user_id":"user123",...}\\n

The checksum is zlib.crc32 of the JSON, in hexadecimal. JSON has no bare newline, so a damaged line costs
itself and no other.
"""

import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path

_CHECKSUM_LENGTH = 9  # eight digits and a space
_PIECE_BYTES = 1 << 20
_LINE_BYTES = 1 << 10  # more than nearly any line has
_BEGINNING = re.compile(rb"[0-9a-f]{0,8}$|[0-9a-f]{8} ")


def to_line(payload: bytes) -> bytes:
    return b"%08x %s\n" % (zlib.crc32(payload), payload)


def from_line(line: bytes) -> bytes | None:
    """The payload, or None where the line, given without its newline, is damaged."""
    payload = line[_CHECKSUM_LENGTH:]
    return payload if line[:_CHECKSUM_LENGTH] == b"%08x " % zlib.crc32(payload) else None


@dataclass(slots=True, eq=False)
class Segment:
    """A file that is appended to by one, and read from its beginning by another.

    size: bytes of it that are accepted events; what lies beyond was never accepted. pushed: bytes that Redis
    has. settled: bytes that Redis will not forget any more. The same in lines. damaged: lines passed over.
    unreadable_until: when reading it, which has failed, is tried again, by time.monotonic().
    """

    path: Path
    size: int = 0
    pushed: int = 0
    settled: int = 0
    lines: int = 0
    pushed_lines: int = 0
    settled_lines: int = 0
    damaged: int = 0
    unreadable_until: float = 0.0


@dataclass(slots=True, frozen=True)
class Batch:
    """Events of one segment, oldest first. end: where in the segment the next batch begins."""

    segment: Segment
    end: int
    lines: int
    payloads: list[bytes] = field(default_factory=list, repr=False)


def read_batch(segment: Segment, most: int) -> Batch:
    """The next events that Redis does not have yet, `most` of them and about 1 MiB at the most.

    Damaged lines are left out, and counted in the segment; so are empty ones, which only tried the disk.
    Raises OSError.
    """
    with segment.path.open("rb", buffering=0) as file:
        file.seek(segment.pushed)
        piece = file.read(min(segment.size - segment.pushed, most * _LINE_BYTES, _PIECE_BYTES))
        while b"\n" not in piece and len(piece) < segment.size - segment.pushed:
            more = file.read(segment.size - segment.pushed - len(piece))
            if not more:
                break
            piece += more
    lines = piece.split(b"\n", most)[:-1]  # but for what follows the last newline
    if not lines:  # the file is shorter than it was, or ends in half a line
        segment.damaged += 1
        return Batch(segment, segment.size, 0)
    payloads = [from_line(line) for line in lines]
    segment.damaged += payloads.count(None)
    end = segment.pushed + sum(map(len, lines)) + len(lines)
    return Batch(segment, end, len(lines), [payload for payload in payloads if payload])


def measure(segment: Segment) -> None:
    """Sets size and lines of a file that another process wrote. Raises OSError.

    Half a line at its end was being written when that process died, and was never accepted.
    """
    tail = b""
    with segment.path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            segment.lines += piece.count(b"\n")
            _, newline, rest = piece.rpartition(b"\n")
            if newline:
                segment.size = file.tell() - len(rest)
            tail = rest if newline else (tail + piece)[:_CHECKSUM_LENGTH]
    if not _BEGINNING.match(tail):
        segment.damaged += 1
