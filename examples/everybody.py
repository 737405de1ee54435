# everybody.py
import asyncio

from redis.asyncio import Redis

from openim_presence import read_all_async, users_online_async


async def main():
    async with Redis.from_url("redis://127.0.0.1:6379/0") as client:
        print(await users_online_async(client), "users are online:")
        async for user in read_all_async(client):
            if user.status == "online":
                print(user.user_id, user.changed_at, user.platforms)


asyncio.run(main())
