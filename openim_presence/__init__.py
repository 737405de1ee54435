"""Reads what the presence servers keep in Redis: who is online, and each change of that.

    from redis import Redis
    import openim_presence

    for user in openim_presence.read(Redis(), ["alice", "bob"]):
        print(user.user_id, user.status)

Everything takes a Redis or a RedisCluster client, with or without decode_responses, and has a twin for asyncio. The
prefix is the servers' `PRESENCE_KEY_PREFIX`.
"""

from openim_presence.feed import AsyncFeed, Change, Feed, Missed
from openim_presence.group import AsyncConsumerGroup, ConsumerGroup
from openim_presence.reading import (
    Presence,
    read,
    read_all,
    read_all_async,
    read_async,
    users_online,
    users_online_async,
)

__version__ = "0.2.0"

__all__ = [
    "AsyncConsumerGroup",
    "AsyncFeed",
    "Change",
    "ConsumerGroup",
    "Feed",
    "Missed",
    "Presence",
    "read",
    "read_all",
    "read_all_async",
    "read_async",
    "users_online",
    "users_online_async",
]
