"""Users for whom one batch named a platform both online and offline: only OpenIM knows how that ended.

OpenIM 3.8.2 and later sends what happened within one second as one batch, in no order; docs/redis-keys.md has the rules
by which we read it. If connections of one platform came and others went, the rules may be wrong. So OpenIM is asked.
Users who differed but had an event just now wait here as well, to be asked about once more.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from redis import Redis

from openim_presence.keys import Keys

#: After this long, OpenIM itself has completed what it sent callbacks about.
WAIT_MS = 2_000
#: At most this many users wait, and none for longer than this: under load, they are the first left to the next period.
MOST = 10_000
LONGEST_MS = 60_000


class Doubtful:
    """The users about whom OpenIM will be asked, on the queue's server. Every method raises RedisError."""

    def __init__(self, queue: Redis, keys: Keys) -> None:
        self._queue = queue
        self._key = keys.doubtful
        self._counts = keys.reconcile

    def add(self, user_ids: Iterable[str], now_ms: int) -> None:
        """now_ms: by the clock of the queue's server."""
        waiting: Any = self._queue.zcard(self._key)
        room = MOST - int(waiting)
        names = sorted(user_ids)
        if kept := names[: max(0, room)]:
            self._queue.zadd(self._key, dict.fromkeys(kept, now_ms + WAIT_MS))
        self._count("dropped", len(names) - len(kept))

    def take(self, now_ms: int, most: int) -> list[str]:
        """Those who have waited for long enough. Drops those who have waited for too long."""
        dropped: Any = self._queue.zremrangebyscore(self._key, "-inf", now_ms - LONGEST_MS)
        self._count("dropped", dropped)
        found: Any = self._queue.zrange(self._key, "-inf", now_ms, byscore=True, offset=0, num=most)
        return [user_id.decode(errors="replace") for user_id in found]

    def asked(self, user_ids: Sequence[str], now_ms: int) -> None:
        """Notes that OpenIM was asked about these users, whom `take` returned at now_ms. Those who were added since
        then still wait.
        """
        if not user_ids:
            return
        due: Any = self._queue.zmscore(self._key, [*user_ids])
        if done := [user_id for user_id, at in zip(user_ids, due, strict=True) if at is not None and at <= now_ms]:
            self._queue.zrem(self._key, *done)
        self._count("asked", len(user_ids))

    def _count(self, outcome: str, count: int) -> None:
        if count:
            self._queue.hincrby(self._counts, f"doubtful:{outcome}", count)
