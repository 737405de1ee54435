"""Which users to compare."""

from collections.abc import AsyncIterator, Iterable

import openim_presence
from openim_presence.keys import Keys
from shared.openim.client import OpenIM
from shared.redis.backend import Backend


async def these(users: Iterable[str]) -> AsyncIterator[str]:
    """Exactly these users."""
    for user_id in users:
        yield user_id


async def shown_online(presence: Backend, keys: Keys) -> AsyncIterator[str]:
    """All users whom we show online. Raises RedisError."""
    for user in openim_presence.read_all(presence, keys.prefix):
        if user.status == "online":
            yield user.user_id


async def everybody(presence: Backend, keys: Keys, openim: OpenIM) -> AsyncIterator[str]:
    """All users whom we or OpenIM know. Raises RedisError and OpenIMError."""
    ours: set[str] = set()
    for user in openim_presence.read_all(presence, keys.prefix):
        ours.add(user.user_id)
        yield user.user_id
    async for page in openim.users():
        for user_id in page:
            if user_id not in ours:
                yield user_id
