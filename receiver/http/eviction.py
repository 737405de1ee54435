"""Limits how many connections there are and how long each may keep us waiting, and closes some if there are too many.

Go does not repeat a POST that met a connection just closed, so OpenIM's idle connections are the last to be closed.
"""

import asyncio
import logging
import resource
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from shared.logs.throttle import LogThrottle

#: Of one process. OpenIM 3.0 to 3.6 has up to 100 for each of its processes, other releases fewer.
MOST_CONNECTIONS = 1000
#: How many files may be open that are not connections: the journal, Redis, the upstream.
OTHER_FILES = 250

log = logging.getLogger("receiver")


class Evictable(Protocol):
    def is_late(self, now: int) -> bool:
        """True if it has kept us waiting for too long. now: as `OpenConnections.now`."""
        ...

    def worth(self) -> tuple[bool, bool, int]:
        """The lowest is closed first."""
        ...

    def cut(self) -> None: ...


E = TypeVar("E", bound=Evictable)


class OpenConnections(Generic[E]):
    """All connections of one server, in the order in which they came.

    now: seconds since the start, a count that costs nothing. are_ending: each connection ends with its next answer.
    """

    def __init__(self, most: int = 0) -> None:
        self.now = 0
        self.are_ending = False
        self._most = most or most_connections()
        self._open: dict[E, None] = {}
        self._crowds = LogThrottle(log, most=1)
        self._loop = asyncio.get_running_loop()
        self._clock = self._loop.call_later(1.0, self._tick)

    def enter(self, newcomer: E) -> None:
        self._open[newcomer] = None
        if len(self._open) > self._most:
            self._make_room(newcomer)

    def leave(self, connection: E) -> None:
        self._open.pop(connection, None)

    def __iter__(self) -> Iterator[E]:
        return iter(self._open)

    def stop(self) -> None:
        """Ends the watch."""
        self._clock.cancel()

    def _make_room(self, newcomer: E) -> None:
        # Several at a time, so that a flood costs one such search for many connections.
        others = [each for each in self._open if each is not newcomer]
        for connection in sorted(others, key=lambda each: each.worth())[: self._most // 20 + 1]:
            connection.cut()
        self._crowds.say(logging.WARNING, "more than %d connections: closing the least useful", self._most)

    def _tick(self) -> None:
        self.now += 1
        for connection in [each for each in self._open if each.is_late(self.now)]:
            connection.cut()
        self._clock = self._loop.call_later(1.0, self._tick)


def most_connections() -> int:
    """MOST_CONNECTIONS, or fewer if this process may not have that many files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_CONNECTIONS + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(soft - OTHER_FILES, soft // 2)
    return MOST_CONNECTIONS
