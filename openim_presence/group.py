"""A consumer group: work that must be done for each change, by one process or by several that share it.

    group = ConsumerGroup(Redis(), "mailer", "mailer-1")
    while True:
        try:
            changes = group.poll()
        except Missed:
            ...  # read all users
            continue
        for change in changes:
            ...  # the work
        group.ack(changes)

Its place is in Redis. docs/change-feed.md says what is promised, and has a whole program.
"""

from collections.abc import Iterable
from typing import Any

from redis.exceptions import ResponseError

from openim_presence.client import AsyncClient, Client, Steps, run, run_async
from openim_presence.feed import Change, Missed, change, newest
from openim_presence.keys import DEFAULT_PREFIX, Keys

BATCH = 100
TAKE_OVER_SECONDS = 60.0
_PAGE = 1000
_BEGINNING = "0-0"
_Entries = list[tuple[bytes, dict[bytes, bytes]]]


class _Consumer:
    """What one consumer knows of its group and of itself, and the commands that move both on.

    Whatever happens, a change is acknowledged after it was handled, or after Missed told of it.
    """

    def __init__(self, prefix: str, group: str, name: str, take_over_seconds: float) -> None:
        self._stream = Keys(prefix).changes
        self._group = group
        self._name = name
        self._take_over_ms = int(take_over_seconds * 1000)
        self._cursor = "0-0"
        #: The changes given to this consumer and not acknowledged; None: only Redis knows.
        self._held: set[str] | None = None
        #: The lost place that Missed told of; None: the place is not lost.
        self._told: str | None = None
        #: The changes given to a consumer and gone before they were acknowledged, of which Missed told.
        self._gone: list[str] = []

    def poll(self, wait_seconds: float) -> Steps[list[Change]]:
        if self._gone:
            yield ("XACK", self._stream, self._group, *self._gone)
            self._gone = []
        place, pending = yield from self._find_place()
        if (yield from self._is_lost(place)):
            place = yield from self._begin(place)
        else:
            self._told = None
        if pending:
            yield from self._notice_trimmed()
        if self._held is None or self._held:
            entries = yield from self._read("0")
            if entries:
                return (yield from self._give(entries))
        # From here on an answer that is lost on its way has given this consumer something nevertheless.
        self._held = None
        entries = (yield from self._claim()) if pending else []
        if not entries:
            entries = yield from self._read(">", wait_seconds)
            if entries and place != _BEGINNING and (yield from self._is_lost(place)):
                yield from self._miss("changes were trimmed away while they were being read")
        # redis-py may have repeated a command whose answer was lost: then older ones were given before.
        if (entries[0][0] if entries else b"") != (yield from self._oldest_held()):
            entries = yield from self._read("0")
        return (yield from self._give(entries))

    def ack(self, changes: Iterable[Change]) -> Steps[None]:
        ids = [each.id for each in changes]
        if ids:
            yield ("XACK", self._stream, self._group, *ids)
            if self._held:
                self._held.difference_update(ids)

    def _find_place(self) -> Steps[tuple[str, int]]:
        """The last id that the group was given, "" where there is no group; how many changes are not acknowledged."""
        try:
            groups = yield ("XINFO GROUPS", self._stream)
        except ResponseError as error:
            if "no such key" not in str(error):
                raise
            groups = []
        for each in groups:
            if each["name"] == self._group.encode():
                return each["last-delivered-id"].decode(), each["pending"]
        return "", 0

    def _is_lost(self, place: str) -> Steps[bool]:
        return not place or not (yield ("XRANGE", self._stream, place, place))

    def _begin(self, place: str) -> Steps[str]:
        """Begins at the oldest change that there is, once Missed was raised and the next poll shows that it was heard.

        So a crash while all users are read repeats that. At the newest change, what happened between the loss of a
        group (a Redis restored from a backup, say) and its making would be passed over.
        """
        if self._told is None or place not in (self._told, _BEGINNING):
            self._told = place
            yield from self._miss(
                f"{self._stream} no longer has {place}, the last change that the group {self._group} was given"
                if place
                else f"the group {self._group} is new"
            )
        if not place:
            try:
                yield ("XGROUP CREATE", self._stream, self._group, "0", "MKSTREAM")
            except ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):  # another consumer was faster
                    raise
        elif place != _BEGINNING:
            yield ("XGROUP SETID", self._stream, self._group, "0")
        self._told = _BEGINNING
        return _BEGINNING

    def _notice_trimmed(self) -> Steps[None]:
        """Raises Missed where changes were trimmed away that a consumer was given and did not acknowledge."""
        oldest = yield ("XRANGE", self._stream, "-", "+", "COUNT", 1)
        end = f"({oldest[0][0].decode()}" if oldest else "+"
        start, gone = "-", []
        while page := (yield ("XPENDING", self._stream, self._group, start, end, _PAGE)):
            gone += [each["message_id"].decode() for each in page]
            start = f"({gone[-1]}"
        if gone:
            self._gone = gone
            yield from self._miss(f"{len(gone)} changes were trimmed away before they were acknowledged")

    def _read(self, place: str, wait_seconds: float | None = None) -> Steps[_Entries]:
        """place: "0" for what this consumer holds, ">" for what nobody was given."""
        block = () if wait_seconds is None else ("BLOCK", int(wait_seconds * 1000))
        who = ("XREADGROUP", "GROUP", self._group, self._name)
        return _entries((yield (*who, "COUNT", BATCH, *block, "STREAMS", self._stream, place)))

    def _claim(self) -> Steps[_Entries]:
        """What another consumer was given and has not acknowledged for too long."""
        words = ("XAUTOCLAIM", self._stream, self._group, self._name, self._take_over_ms, self._cursor)
        cursor, entries, *gone = yield (*words, "COUNT", BATCH)
        self._cursor = cursor.decode()
        if gone and gone[0]:
            yield from self._miss("changes were removed before they were acknowledged")
        return list(entries)

    def _oldest_held(self) -> Steps[bytes]:
        page = yield ("XPENDING", self._stream, self._group, "-", "+", 1, self._name)
        return page[0]["message_id"] if page else b""

    def _give(self, entries: _Entries) -> Steps[list[Change]]:
        gone = [entry_id.decode() for entry_id, fields in entries if not fields]
        if gone:
            self._gone = gone
            yield from self._miss(f"{len(gone)} changes were removed before they were acknowledged")
        self._held = {entry_id.decode() for entry_id, _ in entries}
        return [change(entry_id, fields) for entry_id, fields in entries]

    def _miss(self, why: str) -> Steps[None]:
        self._held = None
        raise Missed(f"changes may be missing: {why}", (yield from newest(self._stream)))


class ConsumerGroup:
    """One consumer of a group. For one thread; the client's socket_timeout must exceed the wait of a poll.

    consumer: a name of its own for each program that shares the work, and the same after a restart. take_over_seconds:
    what a consumer was given and has not acknowledged for so long, another takes over; so no list may take longer.
    """

    def __init__(
        self,
        client: Client,
        group: str,
        consumer: str,
        prefix: str = DEFAULT_PREFIX,
        take_over_seconds: float = TAKE_OVER_SECONDS,
    ) -> None:
        self._client = client
        self._consumer = _Consumer(prefix, group, consumer, take_over_seconds)

    def poll(self, wait_seconds: float = 2.0) -> list[Change]:
        """The next changes, at most 100, in order; none where there were none for about so long.

        Those that are not acknowledged come again, after a restart of this program as well. Raises RedisError where the
        server is away: poll again. Raises Missed where the group is new, and where changes may be gone unread: read all
        users, then poll again. Until then it is raised after every restart.
        """
        return run(self._client, self._consumer.poll(wait_seconds))

    def ack(self, changes: Iterable[Change]) -> None:
        """Says that these are done. Raises RedisError where the server is away: then they may come again."""
        run(self._client, self._consumer.ack(changes))


class AsyncConsumerGroup:
    """As `ConsumerGroup`, for asyncio. A poll may be cancelled: what it was given comes with the next one."""

    def __init__(
        self,
        client: AsyncClient,
        group: str,
        consumer: str,
        prefix: str = DEFAULT_PREFIX,
        take_over_seconds: float = TAKE_OVER_SECONDS,
    ) -> None:
        self._client = client
        self._consumer = _Consumer(prefix, group, consumer, take_over_seconds)

    async def poll(self, wait_seconds: float = 2.0) -> list[Change]:
        """As `ConsumerGroup.poll`."""
        return await run_async(self._client, self._consumer.poll(wait_seconds))

    async def ack(self, changes: Iterable[Change]) -> None:
        """As `ConsumerGroup.ack`."""
        await run_async(self._client, self._consumer.ack(changes))


def _entries(reply: Any) -> _Entries:
    """The entries of the one stream, whichever form redis-py gives the reply: that depends on protocol and version."""
    if not reply:
        return []
    found: Any = next(iter(reply.values())) if isinstance(reply, dict) else reply[0][1]
    return list(found[0] if found and isinstance(found[0], list) else found)
