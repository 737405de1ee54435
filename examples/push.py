"""Sends a push to users who have been offline for 30 s, and none to those who are back by then.

    pip install ./openim_presence
    REDIS_URL=redis://127.0.0.1:6379/0 python examples/push.py

A timer is a member of a sorted set in Redis: the user, and when the push is due. So timers outlive this program, and
changes that come while it is away wait in its consumer group. Run one instance. If it is killed just after a push, it
sends that push again; to rather send none, swap the last two lines of fire().
"""

import asyncio
import os
import signal
import sys
import time

from redis.asyncio import Redis
from redis.exceptions import RedisError

from openim_presence import AsyncConsumerGroup, Change, Missed, read_async

AWAY_SECONDS = 30
LATE_SECONDS = 3600  # nobody wants an older push: on the first start, or after this program was away for long
POLL_SECONDS = 1.0  # a push may be this late
TIMERS = "push-timers"

client = Redis.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"), socket_timeout=5)
group = AsyncConsumerGroup(client, "push", "push-1")


async def push(user: str) -> None:
    print("push to", user, flush=True)  # your work


async def set_timers(changes: list[Change]) -> None:
    pipeline = client.pipeline()
    for change in changes:
        if change.status == "offline":
            pipeline.zadd(TIMERS, {change.user_id: change.changed_at + AWAY_SECONDS * 1000})
        else:
            pipeline.zrem(TIMERS, change.user_id)
    await pipeline.execute()


async def fire() -> None:
    now = time.time() * 1000
    timers = await client.zrangebyscore(TIMERS, "-inf", now, withscores=True, start=0, num=1000)
    due = {user.decode(): at for user, at in timers}
    async for user in read_async(client, due):
        # The hash shows a return before the feed does.
        is_away = user.status == "offline" and user.changed_at + AWAY_SECONDS * 1000 <= now
        if is_away and now - due[user.user_id] < LATE_SECONDS * 1000:
            await push(user.user_id)
        await client.zrem(TIMERS, user.user_id)


async def step() -> None:
    try:
        changes = await group.poll(POLL_SECONDS)
        await set_timers(changes)
        await group.ack(changes)
    except Missed as missed:
        await group.ack(missed)  # users who went offline in missed changes get no push
    await fire()


async def main() -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    while not stop.is_set():
        try:
            await step()
        except RedisError as error:
            print("waiting for Redis:", error, file=sys.stderr)
            await asyncio.sleep(1)
    await client.aclose()


if __name__ == "__main__":
    asyncio.run(main())
