"""The feed of changes, for one reader that keeps its own place.

    feed = Feed(Redis())
    while True:
        for change in feed.poll():
            print(change.user_id, change.status)

For several readers that share the work, see group.py.
"""

from dataclasses import asdict, dataclass
from typing import Any

from redis.exceptions import ResponseError

from openim_presence.client import AsyncClient, Client, Steps, run, run_async
from openim_presence.keys import DEFAULT_PREFIX, Keys

BATCH = 1000
#: How far back to read again if a server has lost its last moments. New ids may then be lower than those already
#: read, because its clock was set back or a replica with another clock took over.
REWIND_MS = 10_000
_BEGINNING = "0-0"
FIELDS = ("user_id", "status", "previous", "seq", "changed_at", "command", "conn_id", "platform_id", "operation_id")


@dataclass(frozen=True, slots=True)
class Change:
    """One change of a user's status.

    id: of the stream's entry, `<ms>-<n>`. changed_at: Unix milliseconds. docs/redis-keys.md has the other fields.
    """

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
        """All fields, for programs."""
        return asdict(self)


class Missed(Exception):
    """Changes may be gone unread. The users' hashes hold the truth: read all users, then go on.

    last_id: the highest id of a change at that moment, "0-0" if there was none. A hash that is read from now on is at
    least as new as that change.
    """

    def __init__(self, message: str, last_id: str) -> None:
        super().__init__(message)
        self.last_id = last_id


class _Place:
    """Where a reader is in the stream, and the commands that move it on."""

    def __init__(self, prefix: str, after: str | None) -> None:
        self._stream = Keys(prefix).changes
        self.last = after
        #: Whether `last` is a change that was read, here or by a former feed; else it is only a time, or the beginning.
        self._has_read_last = bool(after) and "-" in str(after) and after != _BEGINNING

    def poll(self, wait_seconds: float) -> Steps[list[Change]]:
        if self.last is None:
            self.last = yield from self._newest()
            self._has_read_last = self.last != _BEGINNING
        # Ask for the last one read again: one step shows whether it is still there and what follows it.
        start = self.last if self._has_read_last else f"({self.last}"
        entries = yield ("XRANGE", self._stream, start, "+", "COUNT", BATCH + 1)
        if self._has_read_last:
            if not entries or entries[0][0].decode() != self.last:
                yield from self._rewind()
            entries = entries[1:]
        if not entries:
            if block := blocking(wait_seconds):
                # This only waits: the next poll reads what came, as above.
                yield ("XREAD", "COUNT", 1, *block, "STREAMS", self._stream, self.last)
            return []
        changes = [change(entry_id, fields) for entry_id, fields in entries]
        self.last, self._has_read_last = changes[-1].id, True
        return changes

    def _rewind(self) -> Steps[None]:
        lost = self.last or ""
        milliseconds = int(lost.partition("-")[0])
        back = f"{max(0, milliseconds - REWIND_MS)}-0"
        # A clock may have been set back by more than that.
        self.last = min(back, (yield from self._newest()), key=_order)
        self._has_read_last = False
        raise (yield from missed(self._stream, f"the stream no longer has {lost}, the last one read"))

    def _newest(self) -> Steps[str]:
        """The id of the newest entry, "0-0" if there is none."""
        entries = yield ("XREVRANGE", self._stream, "+", "-", "COUNT", 1)
        return entries[0][0].decode() if entries else _BEGINNING


class Feed:
    """The changes after one point. For one thread; the client needs a long enough `socket_timeout`, see `poll`.

    after: the id of the last change seen, such as a former feed's `last`, which must still be in the stream, else the
    first poll raises Missed; or a time in Unix milliseconds, as text ("0" for all changes); None for the changes from
    the first poll on.
    """

    def __init__(self, client: Client, prefix: str = DEFAULT_PREFIX, after: str | None = None) -> None:
        self._client = client
        self._place = _Place(prefix, after)

    @property
    def last(self) -> str | None:
        """The id to begin `after` next time."""
        return self._place.last

    def poll(self, wait_seconds: float = 2.0) -> list[Change]:
        """The next changes, at most 1000, in order; an empty list if none came for about `wait_seconds`.

        wait_seconds: 0 does not wait. The client's `socket_timeout` must be longer: redis-py 8.1 sets 5 s by itself,
        redis-py 6.2 none. Otherwise redis-py's TimeoutError, a RedisError, ends a poll in which no change comes. It
        comes after `socket_timeout`, or several times that if the client tries again, as `Redis()` does. No change is
        lost by it.

        Raises RedisError if the server is away: poll again, and reading goes on where it was. Raises Missed, once, if
        the last change read is no longer in the stream: it was trimmed, or a server that was restarted lost it. The
        changes of the last seconds may then come again.
        """
        return run(self._client, self._place.poll(wait_seconds))


class AsyncFeed:
    """As `Feed`, for asyncio, with the same `socket_timeout`.

    A poll may be cancelled: the next one goes on where it was.
    """

    def __init__(self, client: AsyncClient, prefix: str = DEFAULT_PREFIX, after: str | None = None) -> None:
        self._client = client
        self._place = _Place(prefix, after)

    @property
    def last(self) -> str | None:
        """As `Feed.last`."""
        return self._place.last

    async def poll(self, wait_seconds: float = 2.0) -> list[Change]:
        """As `Feed.poll`."""
        return await run_async(self._client, self._place.poll(wait_seconds))


# The consumer group needs these as well.


def blocking(wait_seconds: float) -> tuple[str | int, ...]:
    """The words that make a command wait for that long; none for 0, which Redis takes as for ever."""
    wait_ms = int(wait_seconds * 1000)
    return ("BLOCK", wait_ms) if wait_ms > 0 else ()


def missed(stream: str, why: str) -> Steps[Missed]:
    """The exception to raise, with the last id of the stream."""
    try:
        about = yield ("XINFO STREAM", stream)
    except ResponseError as error:
        if not is_no_such_key(error):
            raise
        return Missed(f"changes may be missing: {why}", _BEGINNING)
    # Not the id of the newest entry: that may have been removed, and ids still go on from here.
    return Missed(f"changes may be missing: {why}", about["last-generated-id"].decode())


def is_no_such_key(error: ResponseError) -> bool:
    """Whether XINFO says that the key does not exist."""
    return "no such key" in str(error)


def change(entry_id: bytes, fields: dict[bytes, bytes]) -> Change:
    """The change that an entry describes; fields that it lacks are empty."""
    found: dict[str, Any] = {name: fields.get(name.encode(), b"").decode(errors="replace") for name in FIELDS}
    found["changed_at"] = int(found["changed_at"]) if found["changed_at"].isdecimal() else 0
    return Change(entry_id.decode(), **found)


def _order(entry_id: str) -> tuple[int, int]:
    milliseconds, _, number = entry_id.partition("-")
    return int(milliseconds), int(number or 0)
