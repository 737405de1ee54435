"""A consumer group: work that must be done for each change, by one process or several.

    group = ConsumerGroup(Redis(), "mailer", "mailer-1")
    while True:
        try:
            changes = group.poll()
        except Missed as missed:
            ...  # read all users
            group.ack(missed)
        else:
            for change in changes:
                ...  # the work
            group.ack(changes)

Redis keeps what is acknowledged. docs/change-feed.md has the promises.
"""

from collections.abc import Iterable
from typing import Any

from redis.exceptions import ResponseError

from openim_presence.client import AsyncClient, Client, Steps, run, run_async
from openim_presence.feed import Change, Missed, blocking, change, is_no_such_key, missed
from openim_presence.keys import DEFAULT_PREFIX, Keys

BATCH = 100
TAKE_OVER_SECONDS = 60.0
_PAGE = 1000
_BEGINNING = "0-0"
_Entries = list[tuple[bytes, dict[bytes, bytes]]]


class _Consumer:
    """What one consumer knows of its group and of itself, and the commands that advance both."""

    def __init__(self, prefix: str, group: str, name: str, take_over_seconds: float) -> None:
        self._stream = Keys(prefix).changes
        self._group = group
        self._name = name
        self._take_over_ms = int(take_over_seconds * 1000)
        self._cursor = "0-0"
        #: The changes given to this consumer and not acknowledged; None: only Redis knows.
        self._held: set[str] | None = None
        #: Why changes may be missing, until that is acknowledged.
        self._missed = ""
        #: What that acknowledgement settles: the place that was lost, and changes that no consumer can get any more.
        self._lost: str | None = None
        self._gone: list[str] = []
        #: True from `_begin` until the group is given something.
        self._has_begun = False

    def poll(self, wait_seconds: float) -> Steps[list[Change]]:
        if self._missed:
            yield from self._miss(self._missed)
        place, pending = yield from self._find_place()
        if not (yield from self._is_there(place)):
            yield from self._notice_lost(place)
        else:
            self._has_begun = False
        if pending:
            yield from self._notice_trimmed()
        if self._held is None or self._held:
            entries = yield from self._read("0")
            if entries:
                return (yield from self._give(entries))
        # From here on this consumer may be given changes even if the answer is lost on its way.
        self._held = None
        entries = (yield from self._claim()) if pending else []
        if not entries:
            entries = yield from self._read(">", wait_seconds)
            if entries and place != _BEGINNING and not (yield from self._is_there(place)):
                yield from self._miss("some were trimmed away while they were being read")
        # redis-py may have repeated a command whose answer was lost: then this consumer also holds older changes.
        if (entries[0][0] if entries else b"") != (yield from self._oldest_held()):
            entries = yield from self._read("0")
        return (yield from self._give(entries))

    def ack(self, done: Iterable[Change] | Missed) -> Steps[None]:
        if isinstance(done, Missed):
            if self._gone:
                yield from self._ack(self._gone)
            if self._lost is not None:
                yield from self._begin(self._lost)
            self._missed, self._lost, self._gone = "", None, []
        elif ids := [change.id for change in done]:
            yield from self._ack(ids)
            if self._held:
                self._held.difference_update(ids)

    def _ack(self, ids: list[str]) -> Steps[None]:
        yield ("XACK", self._stream, self._group, *ids)

    def _find_place(self) -> Steps[tuple[str, int]]:
        """The last id that the group was given, "" if there is no group; how many changes are not acknowledged."""
        try:
            groups = yield ("XINFO GROUPS", self._stream)
        except ResponseError as error:
            if not is_no_such_key(error):
                raise
            groups = []
        for each in groups:
            if each["name"] == self._group.encode():
                return each["last-delivered-id"].decode(), each["pending"]
        return "", 0

    def _is_there(self, place: str) -> Steps[bool]:
        return bool(place and (yield ("XRANGE", self._stream, place, place)))

    def _notice_lost(self, place: str) -> Steps[None]:
        if self._has_begun and place == _BEGINNING:
            return
        self._lost = place
        yield from self._miss(
            f"the stream no longer has {place}, the last one that the group {self._group} was given"
            if place
            else f"the group {self._group} is new"
        )

    def _begin(self, lost: str) -> Steps[None]:
        """Moves the group to the oldest change there is, if no other consumer has done so.

        At the newest one it would skip what happened between the loss of a group (in a Redis restored from a backup,
        say) and its creation.
        """
        place, _ = yield from self._find_place()
        if place == lost == "":
            try:
                yield ("XGROUP CREATE", self._stream, self._group, "0", "MKSTREAM")
            except ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):  # another consumer was faster
                    raise
        elif place == lost:
            yield ("XGROUP SETID", self._stream, self._group, "0")
        self._has_begun = True

    def _notice_trimmed(self) -> Steps[None]:
        """Looks for changes that were trimmed away after a consumer was given them and before it acknowledged them."""
        oldest = yield ("XRANGE", self._stream, "-", "+", "COUNT", 1)
        end = f"({oldest[0][0].decode()}" if oldest else "+"
        start, gone = "-", []
        while page := (yield ("XPENDING", self._stream, self._group, start, end, _PAGE)):
            gone += [each["message_id"].decode() for each in page]
            start = f"({gone[-1]}"
        if gone:
            self._gone = gone
            yield from self._miss(f"{len(gone)} were trimmed away before they were acknowledged")

    def _read(self, place: str, wait_seconds: float = 0) -> Steps[_Entries]:
        """place: "0" for what this consumer holds, ">" for what no consumer was given yet."""
        words = ("XREADGROUP", "GROUP", self._group, self._name, "COUNT", BATCH, *blocking(wait_seconds))
        return _entries((yield (*words, "STREAMS", self._stream, place)))

    def _claim(self) -> Steps[_Entries]:
        """Takes over what another consumer was given and has not acknowledged in time."""
        words = ("XAUTOCLAIM", self._stream, self._group, self._name, self._take_over_ms, self._cursor)
        cursor, entries, *gone = yield (*words, "COUNT", BATCH)
        self._cursor = cursor.decode()
        if gone and gone[0]:
            yield from self._miss("some were removed before they were acknowledged")
        return list(entries)

    def _oldest_held(self) -> Steps[bytes]:
        page = yield ("XPENDING", self._stream, self._group, "-", "+", 1, self._name)
        return page[0]["message_id"] if page else b""

    def _give(self, entries: _Entries) -> Steps[list[Change]]:
        gone = [entry_id.decode() for entry_id, fields in entries if not fields]
        if gone:
            self._gone = gone
            yield from self._miss(f"{len(gone)} were removed before they were acknowledged")
        self._held = {entry_id.decode() for entry_id, _ in entries}
        return [change(entry_id, fields) for entry_id, fields in entries]

    def _miss(self, why: str) -> Steps[None]:
        self._held, self._missed = None, why
        raise (yield from missed(self._stream, why))


class ConsumerGroup:
    """One consumer of a group. For one thread; the client needs a long enough `socket_timeout`, see `poll`.

    consumer: a name that no other program of the group has, and that stays the same after a restart. take_over_seconds:
    after this time without acknowledgement, another consumer takes over the changes; the work on one list must take
    less.
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
        """The next changes, at most 100, in order; an empty list if none came for about `wait_seconds`.

        wait_seconds: 0 does not wait. The client's `socket_timeout` must be longer, see `Feed.poll`; otherwise
        redis-py's TimeoutError, a RedisError, ends a poll in which no change comes. No change is lost by it.

        What is not acknowledged comes again, also after a restart of this program. Raises RedisError if the server is
        away: poll again. Raises Missed if the group is new, or if changes may be gone unread.
        """
        return run(self._client, self._consumer.poll(wait_seconds))

    def ack(self, done: Iterable[Change] | Missed) -> None:
        """Acknowledges changes that were handled, or a Missed after which all users were read.

        Raises RedisError if the server is away: they then come again.
        """
        run(self._client, self._consumer.ack(done))


class AsyncConsumerGroup:
    """As `ConsumerGroup`, for asyncio, with the same `socket_timeout`.

    A poll may be cancelled: the next one returns what it was given.
    """

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

    async def ack(self, done: Iterable[Change] | Missed) -> None:
        """As `ConsumerGroup.ack`."""
        await run_async(self._client, self._consumer.ack(done))


def _entries(reply: Any) -> _Entries:
    """The entries of the one stream. The form of redis-py's reply depends on protocol and version."""
    if not reply:
        return []
    found: Any = next(iter(reply.values())) if isinstance(reply, dict) else reply[0][1]
    return list(found[0] if found and isinstance(found[0], list) else found)
