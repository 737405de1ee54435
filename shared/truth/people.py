"""Which users to compare."""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator

import openim_presence
from openim_presence.keys import Keys
from shared.openim.client import OpenIM
from shared.redis.backend import Backend


async def these(users: Iterable[str]) -> AsyncIterator[str]:
    """Exactly these users."""
    for user_id in users:
        yield user_id


async def shown_online(
    presence: Backend, keys: Keys, progress: Callable[[], None] = lambda: None
) -> AsyncIterator[str]:
    """All users whom we show online. progress: called for each user who is read. Raises RedisError."""
    for user in _known(presence, keys, progress):
        if user.status == "online":
            yield user.user_id


async def everybody(
    presence: Backend, keys: Keys, openim: OpenIM, progress: Callable[[], None] = lambda: None
) -> AsyncIterator[str]:
    """All users whom we or OpenIM know. progress: called for each of them. Raises RedisError and OpenIMError."""
    ours: set[str] = set()
    for user in _known(presence, keys, progress):
        ours.add(user.user_id)
        yield user.user_id
    async for page in openim.users():
        for user_id in page:
            progress()
            if user_id not in ours:
                yield user_id


def _known(presence: Backend, keys: Keys, progress: Callable[[], None]) -> Iterator[openim_presence.Presence]:
    for user in openim_presence.read_all(presence, keys.prefix):
        progress()
        yield user
