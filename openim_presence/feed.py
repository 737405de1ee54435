"""Following the feed of changes, for programs that may import this package.

    feed = Feed(Redis())
    while True:
        for change in feed.poll():
            print(change.user_id, change.status)

One reader, which keeps its own place. Several that share the work are a consumer group: docs/change-feed.md has one.
"""

from dataclasses import asdict, dataclass
from typing import Any

from redis.client import NEVER_DECODE

from openim_presence.keys import Keys
from openim_presence.reading import DEFAULT, Client

BATCH = 1000
#: How far back to look again where a server has lost its last moments. The next ids may then be lower than those
#: already read, if its clock was set back or a replica with another clock took over.
REWIND_MS = 10_000
FIELDS = ("user_id", "status", "previous", "seq", "changed_at", "command", "conn_id", "platform_id", "operation_id")


@dataclass(frozen=True, slots=True)
class Change:
    """One change of a user's status. id: of the stream's entry, `<ms>-<n>`; the others as docs/redis-keys.md says."""

    id: str
    user_id: str = ""
    status: str = ""
    previous: str = ""
    seq: str = ""
    changed_at: int = 0
    command: str = ""
    conn_id: str = ""
    platform_id: str = ""
    operation_id: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Missed(Exception):
    """Changes may be gone unread, and those of the last seconds may come again. The users' hashes hold what is true."""


class Feed:
    """The changes after one point. For one thread; the client's socket_timeout must exceed the wait of a poll.

    after: the id of the last change seen; None for those from now on. `last` is the same, as reading goes on.
    """

    def __init__(self, client: Client, keys: Keys = DEFAULT, after: str | None = None) -> None:
        self._client = client
        self._stream = keys.changes
        self.last = after
        self._has_read_last = False

    def poll(self, wait_seconds: float = 2.0) -> list[Change]:
        """The next changes, at most 1000, in order; none where there were none for about so long.

        Raises RedisError where the server is away: ask again, and reading goes on where it was. Raises Missed, once,
        where the last change read is no longer in the stream: trimmed away, or lost by a server that was restarted.
        """
        if self.last is None:
            self.last = self._newest() or "0-0"
            self._has_read_last = self.last != "0-0"
        # The last one read is asked for again: whether it is still there comes in the same step as what follows it.
        start = self.last if self._has_read_last else f"({self.last}"
        entries = self._command("XRANGE", self._stream, start, "+", "COUNT", BATCH + 1)
        if self._has_read_last:
            if not entries or entries[0][0].decode() != self.last:
                self._rewind()
            entries = entries[1:]
        if not entries:
            # Only to wait: what came is read as above.
            wait_ms = int(wait_seconds * 1000)
            self._command("XREAD", "COUNT", 1, "BLOCK", wait_ms, "STREAMS", self._stream, self.last)
            return []
        changes = [_change(entry_id, fields) for entry_id, fields in entries]
        self.last, self._has_read_last = changes[-1].id, True
        return changes

    def _rewind(self) -> None:
        lost = self.last or ""
        milliseconds = int(lost.partition("-")[0])
        back = f"{max(0, milliseconds - REWIND_MS)}-0"
        # A clock may even have been set back by more than that.
        self.last = min(back, self._newest() or "0-0", key=_order)
        self._has_read_last = False
        raise Missed(f"changes may be missing: {self._stream} no longer has {lost}, the last one read")

    def _newest(self) -> str:
        entries = self._command("XREVRANGE", self._stream, "+", "-", "COUNT", 1)
        return entries[0][0].decode() if entries else ""

    def _command(self, *words: str | int) -> Any:
        return self._client.execute_command(*words, **{NEVER_DECODE: True})  # type: ignore[no-untyped-call]


def _order(entry_id: str) -> tuple[int, int]:
    milliseconds, _, number = entry_id.partition("-")
    return int(milliseconds), int(number or 0)


def _change(entry_id: bytes, fields: dict[bytes, bytes]) -> Change:
    found: dict[str, Any] = {name: fields.get(name.encode(), b"").decode(errors="replace") for name in FIELDS}
    found["changed_at"] = int(found["changed_at"]) if found["changed_at"].isdecimal() else 0
    return Change(entry_id.decode(), **found)
