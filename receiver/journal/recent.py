"""The newest events of the file that is being written, so that the relay need not read and check them again."""

from receiver.journal.segment import Batch, Segment

#: How much is kept, of the file's bytes. If Redis is away, the events wait in the file.
MOST_BYTES = 1 << 20


class Recent:
    """The events since `take` was last called. Its caller holds the journal's lock."""

    def __init__(self) -> None:
        self._segment: Segment | None = None
        self._taken = 0  # the segment's size at that time
        self._payloads: list[bytes] = []

    def add(self, segment: Segment, payload: bytes) -> None:
        """payload: that of the segment's last line."""
        if segment is not self._segment:
            self._segment, self._taken, self._payloads = segment, 0, []
        if segment.size - self._taken <= MOST_BYTES:
            self._payloads.append(payload)

    def take(self, segment: Segment, most: int) -> Batch | None:
        """All events of the segment that Redis does not have; None if some of them are not here, or it is too many."""
        if segment is not self._segment:
            return None
        payloads, self._payloads, self._taken = self._payloads, [], segment.size
        if len(payloads) != segment.lines - segment.pushed_lines or len(payloads) > most:
            return None
        return Batch(segment, segment.size, len(payloads), [each for each in payloads if each])
