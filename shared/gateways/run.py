"""One run of a gateway process: numbers that form one sequence, whatever the order in which they come.

Several receivers and workers see parts of the sequence, and a journal that is found late brings its part late. A run
puts these parts together; their order changes nothing.
"""

from bisect import bisect_right
from dataclasses import dataclass

from shared.gateways.batches import Heard

#: A number is lost if it has not come this long after a higher one.
LOST_MS = 15_000
#: Within a run a higher number has a later seq, but two numbers may be out of order by this much: between counting a
#: batch and sending it, the gateway asks OpenIM's record for up to 5 s, in several goroutines.
ORDER_MS = 15_000
#: How far apart the numbers of a run may be, in addition to those that it counts in the time between them.
ORDER_NUMBERS = 50
NUMBERS_A_SECOND = 50
#: If a callback was sent after this many later batches came, it belongs to another run.
REPEATED_NUMBERS = 16
#: How many stretches, and so gaps, are remembered one by one.
MOST_STRETCHES = 64


@dataclass(slots=True)
class Run:
    """What came of one run.

    stretches: [first number, last number, when workers got the first of them], in order, with gaps between them.
    first_seq, last_seq: of its lowest and its highest number, by the gateway's clock. first_at_ms, last_at_ms: when its
    first and its last callback were received. heard: how many numbers came. dropped: numbers in forgotten gaps.
    """

    stretches: list[tuple[int, int, int]]
    first_seq: int
    last_seq: int
    first_at_ms: int
    last_at_ms: int
    heard: int = 1
    dropped: int = 0

    @property
    def low(self) -> int:
        return self.stretches[0][0]

    @property
    def high(self) -> int:
        return self.stretches[-1][1]

    def fits(self, number: int, seq: int) -> bool:
        """Whether the number can belong to this run, by the time at which the gateway sent it."""
        if number > self.high:
            apart, numbers = seq - self.last_seq, number - self.high
        elif number < self.low:
            apart, numbers = self.first_seq - seq, self.low - number
        else:
            repeated = seq > self.last_seq and self.high - number > REPEATED_NUMBERS and self._has(number)
            return self.first_seq - ORDER_MS <= seq <= self.last_seq + ORDER_MS and not repeated
        return apart >= -ORDER_MS and numbers <= ORDER_NUMBERS + max(apart, 0) * NUMBERS_A_SECOND // 1000

    def overlaps(self, other: "Run") -> bool:
        """Whether both ran at the same time, by the gateway's clock (which may step back) and by the receivers'."""
        return (
            max(self.first_seq, other.first_seq) <= min(self.last_seq, other.last_seq)
            and max(self.first_at_ms, other.first_at_ms) <= min(self.last_at_ms, other.last_at_ms)
        )  # fmt: skip

    def add(self, number: int, batch: Heard, now_ms: int) -> bool:
        """Adds a number; False if it came before. now_ms: when a worker gets it."""
        self.first_at_ms, self.last_at_ms = min(self.first_at_ms, batch.at_ms), max(self.last_at_ms, batch.at_ms)
        if number > self.high:
            self.last_seq = max(batch.seq, self.last_seq)
        elif number < self.low:
            self.first_seq = min(batch.seq, self.first_seq)
        elif self._has(number):
            return False
        self.heard += 1
        self._insert(number, now_ms)
        if len(self.stretches) > MOST_STRETCHES:
            (first, end, at_ms), (start, last, later_ms) = self.stretches[:2]
            self.dropped += start - end - 1
            self.stretches[:2] = [(first, last, min(at_ms, later_ms))]
        return True

    def _has(self, number: int) -> bool:
        index = self._after(number)
        return index > 0 and number <= self.stretches[index - 1][1]

    def _after(self, number: int) -> int:
        """The index of the first stretch that begins above the number."""
        return bisect_right(self.stretches, number, key=lambda stretch: stretch[0])

    def _insert(self, number: int, now_ms: int) -> None:
        index = self._after(number)
        start, end, at_ms = number, number, now_ms
        first = last = index
        if index > 0 and self.stretches[index - 1][1] + 1 == number:
            first, (start, _, at_ms) = index - 1, self.stretches[index - 1]
        if index < len(self.stretches) and self.stretches[index][0] - 1 == number:
            last, (_, end, later_ms) = index + 1, self.stretches[index]
            at_ms = min(at_ms, later_ms)
        self.stretches[first:last] = [(start, end, at_ms)]

    def missing(self, now_ms: int) -> list[tuple[int, int]]:
        """The gaps that are remembered one by one: the first and the last number of each that never came."""
        gaps, higher_at_ms = [], now_ms
        for below, above in zip(reversed(self.stretches[:-1]), reversed(self.stretches), strict=False):
            higher_at_ms = min(higher_at_ms, above[2])
            if now_ms - higher_at_ms > LOST_MS:
                gaps.append((below[1] + 1, above[0] - 1))
        return gaps[::-1]

    def lost(self, now_ms: int) -> int:
        """How many of its numbers never came."""
        return self.dropped + sum(last - first + 1 for first, last in self.missing(now_ms))
