"""The results of comparisons, kept on the queue's server for metrics and `presence status`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from redis import Redis

from openim_presence.keys import Keys
from shared.truth.findings import COUNTED, Tally
from shared.truth.verdict import Kind

KINDS: tuple[Kind, ...] = get_args(Kind)
DOUBTFUL = ("asked", "dropped")


@dataclass(frozen=True, slots=True)
class Ledger:
    """Times are Unix milliseconds by the clock of the queue's server, 0 for never.

    compared_at_ms: when the last comparison of all users, or of all who are shown online, ended. found: its counts, by
    the names of Tally. put_right: users corrected so far, by kind. trouble: why OpenIM could not be asked last time,
    or "". doubtful: users so far for whom one batch named a platform both online and offline: OpenIM was `asked`, or
    they were `dropped` because too many waited, or for too long.
    """

    compared_at_ms: int = 0
    found: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTED, 0))
    put_right: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    trouble: str = ""
    trouble_at_ms: int = 0
    doubtful: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(DOUBTFUL, 0))


def read(fields: Mapping[bytes, bytes]) -> Ledger:
    """Reads the hash. A field that makes no sense counts as absent."""
    text = {name.decode(errors="replace"): value.decode(errors="replace") for name, value in fields.items()}

    def number(name: str) -> int:
        return int(text[name]) if text.get(name, "").isdecimal() else 0

    return Ledger(
        number("compared_at"),
        {name: number(f"found:{name}") for name in COUNTED},
        {kind: number(f"put_right:{kind}") for kind in KINDS},
        text.get("trouble", ""),
        number("trouble_at"),
        {outcome: number(f"doubtful:{outcome}") for outcome in DOUBTFUL},
    )


class LedgerWriter:
    """Writes the hash. Every method raises RedisError."""

    def __init__(self, queue: Redis, keys: Keys) -> None:
        self._queue = queue
        self._key = keys.reconcile

    def put_right(self, counts: Mapping[str, int]) -> None:
        """Adds users who were corrected, by kind."""
        for kind, count in counts.items():
            self._queue.hincrby(self._key, f"put_right:{kind}", count)

    def compared(self, tally: Tally, now_ms: int) -> None:
        """Notes that a comparison of many users has ended."""
        found: Mapping[Any, Any] = {f"found:{name}": count for name, count in tally.as_json().items()}
        self._queue.hset(self._key, mapping={"compared_at": now_ms, **found})
        self.answered()

    def answered(self) -> None:
        """Notes that OpenIM can be asked."""
        self._queue.hdel(self._key, "trouble", "trouble_at")

    def failed(self, why: str, now_ms: int) -> None:
        """Notes that OpenIM cannot be asked, and why."""
        self._queue.hset(self._key, mapping={"trouble": why, "trouble_at": now_ms})
