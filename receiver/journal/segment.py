"""One file of the journal: a line for each event, which begins with a checksum.

    3f0c9a1e ["user123",...]\\n

The checksum is zlib.crc32 of the JSON, in hexadecimal. JSON has no bare newline, so a damaged line costs no other. It
has no zero byte either: if a power cut left pages of zeros, the whole lines beside them are still read.
"""

import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path

_CHECKSUM_LENGTH = 9  # eight digits and a space
_PIECE_BYTES = 1 << 20
_LINE_BYTES = 1 << 10  # nearly all lines are shorter
_BEGINNING = re.compile(rb"[0-9a-f]{0,8}$|[0-9a-f]{8} ")
_ZEROS = re.compile(rb"\0+")


def to_line(payload: bytes) -> bytes:
    return b"%08x %s\n" % (zlib.crc32(payload), payload)


def from_line(line: bytes) -> bytes | None:
    """The payload, or None if the line, given without its newline, is damaged."""
    payload = line[_CHECKSUM_LENGTH:]
    return payload if line[:_CHECKSUM_LENGTH] == b"%08x " % zlib.crc32(payload) else None


@dataclass(slots=True, eq=False)
class Segment:
    """A file to which one thread appends, and which another reads from its beginning.

    adopted: it is in another process's folder. measured: size and lines are known. oldest_ms: about when the first
    event that Redis does not have was received, Unix milliseconds. size: bytes of accepted events; bytes beyond were
    never accepted. pushed: bytes that Redis has. settled: bytes that Redis can no longer lose. lines, pushed_lines,
    settled_lines: the same in lines. damaged: lines skipped. zeros: zero bytes at its end, after a whole line.
    unreadable_until: when a failed read is tried again, by time.monotonic(); 0 if it has not failed.
    """

    path: Path
    adopted: bool = False
    measured: bool = True
    oldest_ms: int = 0
    size: int = 0
    pushed: int = 0
    settled: int = 0
    lines: int = 0
    pushed_lines: int = 0
    settled_lines: int = 0
    damaged: int = 0
    zeros: int = 0
    unreadable_until: float = 0.0


@dataclass(slots=True, frozen=True)
class Batch:
    """Events of one segment, oldest first. end: where in the segment the next batch begins."""

    segment: Segment
    end: int
    lines: int
    payloads: list[bytes] = field(default_factory=list, repr=False)


def read_batch(segment: Segment, most: int) -> Batch:
    """The next events that Redis does not have yet, at most `most` and about 1 MiB.

    Damaged lines are left out and counted in the segment. Empty lines, which were only written to try the disk, are
    left out too. Raises OSError.
    """
    wanted = segment.size - segment.pushed
    with segment.path.open("rb", buffering=0) as file:
        file.seek(segment.pushed)
        piece = file.read(min(wanted, most * _LINE_BYTES, _PIECE_BYTES))
        while b"\n" not in piece and len(piece) < wanted:
            more = file.read(wanted - len(piece))
            if not more:
                break
            piece += more
    lines = piece.split(b"\n", most)
    rest = lines.pop()
    end = segment.pushed + len(piece) - len(rest)
    if rest and len(piece) == wanted and len(lines) < most:  # zeros took the newline of the last one
        lines.append(rest.rstrip(b"\0"))
        end = segment.size
    if not lines:  # the file is shorter than it was
        lost = segment.lines - segment.pushed_lines
        segment.damaged += max(1, lost)
        return Batch(segment, segment.size, lost)
    payloads: list[bytes] = []
    for line in lines:
        payload = from_line(line)
        if payload is None:
            whole, damaged = _salvage(line)
            payloads += whole
            segment.damaged += damaged
        elif payload:
            payloads.append(payload)
    return Batch(segment, end, len(lines), payloads)


def _salvage(line: bytes) -> tuple[list[bytes], int]:
    """The whole pieces of a damaged line, between zeros, and how many pieces are damaged.

    A single zero between two whole lines replaced a newline; several zeros replaced an event.
    """
    found = [from_line(piece) for piece in _ZEROS.split(line) if piece]
    whole = [payload for payload in found if payload]
    damaged = found.count(None) or int(not found or len(max(_ZEROS.findall(line), default=b"")) > 1)
    return whole, damaged


def measure(segment: Segment) -> bytes:
    """Sets size and lines of a file that another process wrote; returns its first event. Raises OSError.

    Half a line at its end was being written when that process died, and was never accepted.
    """
    size = lines = 0
    with segment.path.open("rb") as file:
        first = from_line(file.readline().rstrip(b"\n").strip(b"\0")) or b""
        file.seek(0)
        while piece := file.read(_PIECE_BYTES):
            lines += piece.count(b"\n")
            if newline := piece.rfind(b"\n") + 1:
                size = file.tell() - len(piece) + newline
        file.seek(size)
        rest = file.read()
    written = rest.rstrip(b"\0")
    if written and b"\0" in rest:  # zeros took the rest of it, or its newline
        size, lines = size + len(rest), lines + 1
    elif written or not size:
        segment.damaged = int(bool(rest) and not _BEGINNING.match(rest))
    segment.zeros = len(rest) - len(written)
    segment.size, segment.lines, segment.measured = size, lines, True
    return first
