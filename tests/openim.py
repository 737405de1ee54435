"""A stand-in for OpenIM: its REST interface over gateways that can be killed, cut off and restarted.

Its answers have the form of those in tests/samples/rest.json, which came from a real OpenIM.
"""

import asyncio
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from shared.cli.gateways import Connection, Gateways, _Gateway

SECRET, ADMIN = "openIM123", "imAdmin"
#: Part of every user's token; it must appear nowhere else.
TOKEN = "eyJhbGciOiJIUzI1NiIs"
#: With more connections in one answer, a real OpenIM fails internally and says that nobody is online.
MOST_CONNECTIONS = 12_000
#: The paths that every release has.
ALWAYS = (
    *("/user/get_users_online_status", "/user/get_users_online_token_detail", "/user/get_users_status"),
    "/user/get_all_users_uid",
)
NAMES = {1: "IOS", 2: "Android", 5: "Web"}


@dataclass
class OpenIM:
    """Its fields may be changed while it serves.

    im: the gateways. away: numbers of those that the API does not reach. is_old: the forms and paths up to 3.8.0.
    limited: how many calls are answered with 429 and `retry_after`. seconds: how long each call takes. raw: bodies to
    answer instead, by path. errors: errCodes, by path. users: all that exist. ahead_ms: how far its
    clock is ahead, None if it does not say. release: "" if it does not say. asked: the questions so far.
    """

    im: Gateways
    url: str = ""
    secret: str = SECRET
    admins: tuple[str, ...] = (ADMIN,)
    away: set[int] = field(default_factory=set)
    is_old: bool = False
    limited: int = 0
    retry_after: str = "1"
    seconds: float = 0.0
    raw: Callable[[str], web.Response | None] = lambda _: None
    errors: dict[str, int] = field(default_factory=dict)
    users: list[str] = field(default_factory=list)
    ahead_ms: int | None = 0
    release: str = ""
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    _tokens: dict[str, str] = field(default_factory=dict)
    _ended: dict[str, int] = field(default_factory=dict)

    # What can happen to it.

    def end_tokens(self, code: int = 1506) -> None:
        """Ends all tokens, as a login of the same admin elsewhere does."""
        self._ended |= dict.fromkeys(self._tokens, code)

    def kill(self, number: int) -> None:
        """A gateway ends, with all its connections and without a callback; OpenIM's record keeps its users."""
        self.im._gateways[number].connections.clear()
        self.im._gateways[number].noted.clear()
        self.away.add(number)

    def restart(self, number: int, pid: int) -> None:
        self.kill(number)
        self.im._gateways[number] = _Gateway(pid)
        self.away.discard(number)

    def forget_record(self) -> None:
        """Forgets OpenIM's own record, as it does after half an hour without a gateway that renews it."""
        self.im._record.clear()

    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]

    # What it answers.

    def _connections(self, user_id: str) -> Iterator[list[Connection]]:
        for number, gateway in enumerate(self.im._gateways):
            if number not in self.away and user_id in gateway.connections:
                yield gateway.connections[user_id]

    def _named(self, platform_id: int) -> dict[str, Any]:
        return {"platform": NAMES[platform_id], "status": "online"} if self.is_old else {"platformID": platform_id}

    def _status(self, is_online: bool) -> int | str:
        return ("online" if is_online else "offline") if self.is_old else int(is_online)

    def _of_gateways(self, user_id: str) -> dict[str, Any]:
        places = [
            {**self._named(each.platform_id), "connID": conn_id(each), "isBackground": False, "token": token(each)}
            for each in next(self._connections(user_id), ())
        ]
        return {"userID": user_id, "status": self._status(bool(places)), "detailPlatformStatus": places or None}

    def _merged(self, user_id: str) -> dict[str, Any] | None:
        tokens: dict[int, list[str]] = {}
        for connections in self._connections(user_id):
            for each in connections:
                tokens.setdefault(each.platform_id, []).append(token(each))
        places = [{**self._named(each), "total": len(of), "token": of} for each, of in tokens.items()]
        return {"userID": user_id, "status": self._status(True), "singlePlatformToken": places} if places else None

    def _recorded(self, user_id: str) -> dict[str, Any]:
        platform_ids = sorted(self.im._record.get(user_id, ()))
        return {"userID": user_id, "status": int(bool(platform_ids)), "platformIDs": platform_ids or None}

    def _log_in(self, question: Mapping[str, Any]) -> Any:
        if question["secret"] != self.secret:
            return 1002
        if not self.is_old and question["userID"] not in self.admins:
            return 1001
        given = f"token-{len(self._tokens)}-of-{question['userID']}"
        self._tokens[given] = question["userID"]
        return {"token": given, "expireTimeSeconds": 7_776_000}

    def _page(self, pagination: Mapping[str, int]) -> Any:
        start = (pagination["pageNumber"] - 1) * pagination["showNumber"]
        return {"total": len(self.users), "userIDs": self.users[start : start + pagination["showNumber"]] or None}

    def _answer(self, path: str, question: dict[str, Any], given: str) -> Any:
        """The data, or an errCode."""
        if path in self.errors:
            return self.errors[path]
        if path.startswith("/auth/"):
            return self._log_in(question)
        if not given:
            return 1001
        if code := self._ended.get(given, 0 if given in self._tokens else 1503):
            return code
        return self._answer_user(path, question, self._tokens[given] in self.admins)

    def _answer_user(self, path: str, question: dict[str, Any], is_admin: bool) -> Any:
        user_ids = question.get("userIDs", [])
        if path == "/user/get_users_online_status":
            return ([self._of_gateways(each) for each in user_ids] or None) if is_admin else 1002
        if path == "/user/get_users_online_token_detail":
            merged = [each for each in map(self._merged, user_ids) if each] if is_admin else []
            total = sum(len(place["token"]) for each in merged for place in each["singlePlatformToken"])
            return merged if merged and total <= MOST_CONNECTIONS else None
        if path == "/user/get_users_status":
            return {"statusList": [self._recorded(each) for each in user_ids]} if user_ids else 1001
        if path == "/msg/get_server_time":
            return {"serverTime": time.time_ns() // 1_000_000 + (self.ahead_ms or 0)}
        if path == "/config/get_config_list":
            return {"environment": "source", "version": self.release, "configNames": []} if is_admin else 1002
        return self._page(question["pagination"])

    async def handle(self, request: web.Request) -> web.Response:
        question = await request.json()
        self.asked.append((request.path, question))
        await asyncio.sleep(self.seconds)
        if self.limited:
            self.limited -= 1
            return web.Response(status=429, headers={"Retry-After": self.retry_after})
        if not request.path.startswith("/auth/") and (raw := self.raw(request.path)):
            return raw
        known = {
            "/auth/get_admin_token": not self.is_old,
            "/auth/user_token": self.is_old,
            "/msg/get_server_time": self.ahead_ms is not None,
            "/config/get_config_list": bool(self.release),
        }
        if not known.get(request.path, request.path in ALWAYS):
            return web.Response(status=404, text="404 page not found")
        data = 1001
        if request.headers.get("operationID"):
            data = self._answer(request.path, question, request.headers.get("token", ""))
        code = data if isinstance(data, int) else 0
        trouble = f"trouble with {TOKEN}" if code else ""
        body = {"errCode": code, "errMsg": trouble, "errDlt": trouble}
        return web.json_response(body if code else {**body, "data": data})


def conn_id(connection: Connection) -> str:
    return f"{id(connection):032x}"


def token(connection: Connection) -> str:
    return f"{TOKEN}.{connection.user_id}.{id(connection)}"


@contextmanager
def serving(*pids: int, tls: ssl.SSLContext | None = None) -> Iterator[OpenIM]:
    """Serves an OpenIM with a gateway process for each of these pids, until the end of the `with`."""
    fake = OpenIM(Gateways(*pids))
    loop, is_up = asyncio.new_event_loop(), threading.Event()

    async def start() -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/{path:.*}", fake.handle)
        runner = web.AppRunner(app, shutdown_timeout=0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        port = runner.addresses[0][1]
        fake.url = f"{'https' if tls else 'http'}://{'localhost' if tls else '127.0.0.1'}:{port}"
        return runner

    def run() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(start())
        is_up.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert is_up.wait(10)
    try:
        yield fake
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def shape(value: Any) -> Any:
    """The form of a JSON value: its names and types, without the values."""
    if isinstance(value, dict):
        return {name: shape(each) for name, each in value.items()}
    if isinstance(value, list):
        return [shape(each) for each in value]
    return type(value).__name__


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()
