"""Asks OpenIM who is online. OpenIM reports an error with HTTP 200 and an errCode in the body."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Self, TypeVar

from shared.openim import answers
from shared.openim.answers import Connections, Platforms, Recorded
from shared.openim.calls import Calls, Reply, Secret
from shared.openim.errors import Fault, OpenIMAway, OpenIMLacks, OpenIMRefuses

#: Ids in one question. If an answer would have more than about 12,000 connections, OpenIM says that everybody is
#: offline; and its cost grows with ids times connections.
MOST_IDS = 400
PAGE = 1000
#: How many tokens one question may use up, if OpenIM ends them.
TOKENS = 3

_ARGUMENTS = 1001
_PERMISSION = 1002
#: Expired, malformed, not valid yet, unknown, kicked, ... (openimsdk/tools, errs/predefine.go).
_TOKEN_ENDED = range(1501, 1508)
_CONNECTIONS = "/user/get_users_online_status"

T = TypeVar("T")


class OpenIM:
    """Used in `async with`. Every question raises OpenIMError: OpenIMAway or OpenIMRefuses.

    url, secret, admin: as the settings PRESENCE_OPENIM_*. We ask for the admin's token once, and again only after
    OpenIM has ended it: on OpenIM's main branch each new token ends that admin's older ones. We believe nothing until
    OpenIM has accepted the token as an admin's: with any other token, question C says that everybody is offline.
    """

    def __init__(self, url: str, secret: str, admin: str) -> None:
        self._calls = Calls(url)
        self._secret = Secret(secret)
        self._admin = admin
        self._token = Secret()
        self._logging_in = asyncio.Lock()
        #: Whether OpenIM is 3.8.0 or older: its sessions are connections, and its record is not to be trusted. Known
        #: after the first question.
        self.is_old = False

    async def __aenter__(self) -> Self:
        await self._calls.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._calls.__aexit__(*error)

    async def connections(self, user_ids: Sequence[str]) -> Connections:
        """Question A: each user's connections at the first gateway that knows the user."""
        return await self._ask(_CONNECTIONS, _about(user_ids), answers.connections)

    async def platforms(self, user_ids: Sequence[str]) -> Platforms:
        """Question C: those of the users who are online at any gateway that OpenIM reached."""
        return await self._ask("/user/get_users_online_token_detail", _about(user_ids), answers.platforms)

    async def recorded(self, user_ids: Sequence[str]) -> Recorded:
        """Question B: which platforms are online by OpenIM's own record."""
        return await self._ask("/user/get_users_status", _about(user_ids), answers.recorded)

    async def users(self) -> AsyncIterator[list[str]]:
        """All of OpenIM's users, page by page. Pages may shift meanwhile, so a user may be missing or come twice."""
        number, more = 1, True
        while more:
            page = {"pagination": {"pageNumber": number, "showNumber": PAGE}}
            total, user_ids = await self._ask("/user/get_all_users_uid", page, answers.user_ids)
            if user_ids:
                yield user_ids
            more = bool(user_ids) and number * PAGE < total
            number += 1

    async def log_in(self) -> None:
        """Does what comes before each question: gets a token, and asks whether it is an admin's."""
        await self._current_token()

    async def clock_ms(self) -> int | None:
        """The clock of one of its services, in Unix milliseconds; None if it does not say, as before 3.2.0."""
        try:
            return await self._ask("/msg/get_server_time", {}, answers.clock_ms)
        except OpenIMLacks:
            return None

    async def release(self) -> str:
        """OpenIM's release, such as `v3.8.4`, or `main` for that branch; "" if it does not say, as up to 3.8.3."""
        try:
            return await self._ask("/config/get_config_list", {}, answers.release)
        except OpenIMLacks:
            return ""

    async def _ask(self, path: str, question: Mapping[str, Any], read: Callable[[bytes], T]) -> T:
        for _ in range(TOKENS):
            token = await self._current_token()
            reply = await self._calls.post(path, question, token)
            code = self._code(reply, path)
            if code not in _TOKEN_ENDED:
                self._check(code, path)
                return self._read(read, reply, path)
            if self._token is token:  # else another question has already replaced it
                self._token = Secret()
        raise self._refuses("it keeps ending our token: give presence an admin user of its own", "admin")

    async def _current_token(self) -> Secret:
        async with self._logging_in:
            if not self._token:
                token = await self._log_in()
                self.is_old = await self._is_old(token)
                self._token = token
            return self._token

    async def _log_in(self) -> Secret:
        path, who = "/auth/get_admin_token", {"secret": self._secret, "userID": self._admin}
        reply = await self._calls.post(path, who)
        if reply.status == 404:  # up to 3.8.0
            path = "/auth/user_token"
            reply = await self._calls.post(path, {**who, "platformID": 1})
        code = self._code(reply, path)
        if code == _PERMISSION:
            raise self._refuses("PRESENCE_OPENIM_SECRET is not its secret", "secret")
        self._check(_PERMISSION if code == _ARGUMENTS else code, path)
        return Secret(self._read(answers.token, reply, path))

    async def _is_old(self, token: Secret) -> bool:
        """Asks question A: of those about gateways, only it refuses a token that is not an admin's."""
        reply = await self._calls.post(_CONNECTIONS, _about([self._admin]), token)
        self._check(self._code(reply, _CONNECTIONS), _CONNECTIONS)
        return bool(self._read(answers.connections, reply, _CONNECTIONS).has_old_form)

    def _code(self, reply: Reply, path: str) -> int:
        if reply.status == 404:
            why = f"it has no {path} (HTTP 404): check that PRESENCE_OPENIM_API leads to its API"
            raise OpenIMLacks(self._cannot(why), "another")
        return self._read(answers.error_code, reply, path)

    def _check(self, code: int, path: str) -> None:
        if code == _PERMISSION:
            raise self._refuses("PRESENCE_OPENIM_ADMIN is not one of its admins", "admin")
        if code:
            raise OpenIMAway(f"{self._calls.name} answers {path} with errCode {code}", "trouble")

    def _read(self, read: Callable[[bytes], T], reply: Reply, path: str) -> T:
        try:
            return read(reply.body)
        except answers.Unreadable as error:
            trouble = str(error)
        raise self._refuses(f"it answers {path} in a form that we do not know ({trouble})", "another")

    def _refuses(self, why: str, fault: Fault) -> OpenIMRefuses:
        return OpenIMRefuses(self._cannot(why), fault)

    def _cannot(self, why: str) -> str:
        return f"{self._calls.name} cannot be asked: {why}"


def _about(user_ids: Sequence[str]) -> dict[str, list[str]]:
    if not 0 < len(user_ids) <= MOST_IDS:
        raise ValueError(f"{len(user_ids)} users in one question")
    return {"userIDs": list(user_ids)}
