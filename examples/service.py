"""A web service: who of these users is online, and a WebSocket that pushes what changes.

    pip install ./openim_presence fastapi uvicorn websockets
    REDIS_URL=redis://127.0.0.1:6379/0 uvicorn --app-dir examples service:app

POST a list of users to /presence: the answer has the presence of each. Send such a list on the WebSocket /changes:
the same comes back, and then each change; another list replaces it. Anybody may ask: put your own login before it.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any

from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.responses import JSONResponse
from pydantic import Field, TypeAdapter, ValidationError
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError

from openim_presence import AsyncFeed, Missed, read_async

URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")
# Tries again: after a restart of Redis, each connection that was open to the old one fails once.
client = Redis.from_url(URL, socket_timeout=5, retry=Retry(ExponentialBackoff(), 3))
Users = Annotated[list[str], Field(max_length=10_000)]


class Watcher:
    """A WebSocket. If it is slow, it gets a user's latest presence, not each step on the way."""

    def __init__(self, socket: WebSocket) -> None:
        self.socket = socket
        self.known: dict[str, Any] = {}  # the users it watches; None: not read yet
        self.unsent: set[str] = set()
        self.has_unsent = asyncio.Event()

    def tell(self, user: dict[str, Any]) -> None:
        self.known[user["user_id"]] = user
        self.unsent.add(user["user_id"])
        self.has_unsent.set()

    async def send(self) -> None:
        with suppress(WebSocketDisconnect):
            while await self.has_unsent.wait():
                self.has_unsent.clear()
                while self.unsent:
                    await self.socket.send_json(self.known[self.unsent.pop()])


watchers: set[Watcher] = set()


async def ask(users: Iterable[str]) -> AsyncIterator[dict[str, Any]]:
    async for user in read_async(client, users):
        yield {"user_id": user.user_id, "status": user.status, "since": user.changed_at, "platforms": user.platforms}


async def follow() -> None:
    feed, changed, is_complete = AsyncFeed(client), set[str](), False
    while True:
        try:
            changed.update(change.user_id for change in await feed.poll())
            if not is_complete:
                changed.update(*(watcher.known for watcher in watchers))
            async for user in ask(changed):
                for watcher in watchers:
                    if watcher.known.get(user["user_id"], user) != user:
                        watcher.tell(user)
            changed.clear()
            is_complete = True
        except (Missed, RedisError) as error:
            print("all are read again:", error, file=sys.stderr)
            is_complete = False
            await asyncio.sleep(1)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    task = asyncio.create_task(follow())
    yield
    task.cancel()
    await client.aclose()


app = FastAPI(lifespan=lifespan)


@app.exception_handler(RedisError)
async def unavailable(*_: Any) -> JSONResponse:
    return JSONResponse({"detail": "Redis is away"}, 503)


@app.post("/presence")
async def presence(users: Users) -> list[dict[str, Any]]:
    return [user async for user in ask(users)]


@app.websocket("/changes")
async def changes(socket: WebSocket) -> None:
    await socket.accept()
    watcher = Watcher(socket)
    watchers.add(watcher)
    sender = asyncio.create_task(watcher.send())
    try:
        async for text in socket.iter_text():
            watcher.known = dict.fromkeys(TypeAdapter(Users).validate_json(text))
            watcher.unsent.clear()
            async for user in ask(watcher.known):
                if watcher.known[user["user_id"]] is None:  # or follow() has read it already, and later
                    watcher.tell(user)
    except (ValidationError, RedisError) as error:
        await socket.close(1008 if isinstance(error, ValidationError) else 1013)
    finally:
        sender.cancel()
        watchers.discard(watcher)
