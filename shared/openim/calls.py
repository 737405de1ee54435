"""HTTP calls to OpenIM's API: few at a time, and none for longer than OpenIM itself would wait.

aiohttp's errors contain the request, and so the admin's token. So a failure is a value here until an error of our own
is raised, which has neither a cause nor a body.
"""

import asyncio
import json
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import aiohttp

from shared.openim.errors import Fault, OpenIMAway, OpenIMError, OpenIMRefuses
from shared.resolver import Resolver
from shared.settings import without_password

#: OpenIM's own limit for its calls, as shipped. A slower answer counts as none.
CALL_SECONDS = 5.0
#: Calls at one time.
CONCURRENCY = 2
#: An answer about 400 users with ten connections each, and tokens of 400 bytes, has a quarter of this.
MOST_BYTES = 8_388_608
#: How often one question is asked in all, if OpenIM limits us or closes the connection.
TRIES = 3
#: If OpenIM tells us to wait for longer, we do not wait, and the question fails.
LONGEST_PAUSE_SECONDS = 10.0

#: OpenIM does this to a connection that was idle for long, and when it is restarted.
_CUT = "closed the connection"


class Secret(str):
    """Text that stays hidden if a tool shows the variables of a program that failed."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'...'"


@dataclass(frozen=True, slots=True)
class Reply:
    """failure, fault: why there is no answer, or "". pause_seconds: how long to wait before asking again."""

    failure: str = ""
    fault: Fault = "trouble"
    status: int = 0
    pause_seconds: float = 0.0
    body: bytes = field(default=b"", repr=False)

    @property
    def may_be_tried_again(self) -> bool:
        return self.failure == _CUT or (self.status == 429 and self.pause_seconds <= LONGEST_PAUSE_SECONDS)


class Calls:
    """Calls to the API at one URL, such as `http://openim:10002`; used in `async with`."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self.name = f"OpenIM at {without_password(self._url)}"
        self._places = asyncio.Semaphore(CONCURRENCY)
        self._resumes_at = 0.0

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=Resolver()),
            timeout=aiohttp.ClientTimeout(total=CALL_SECONDS),
            trust_env=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def post(self, path: str, question: Mapping[str, Any], token: Secret | None = None) -> Reply:
        """An answer with HTTP 200 or 404. Raises OpenIMError for any other status, and if there is no answer."""
        reply = Reply()
        for _ in range(TRIES):
            async with self._places:
                await asyncio.sleep(max(0.0, self._resumes_at - time.monotonic()))
                reply = await self._try(path, question, token)
            if not reply.may_be_tried_again:
                break
            self._resumes_at = time.monotonic() + reply.pause_seconds  # all calls wait
        if reply.status in (200, 404):
            return reply
        raise self._error(path, reply)

    async def _try(self, path: str, question: Mapping[str, Any], token: Secret | None) -> Reply:
        headers = {
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",  # or a small body could become a large one
            "operationID": "presence " + secrets.token_hex(8),
            **({"token": token} if token else {}),
        }
        data = json.dumps(question).encode()
        try:
            async with self._session.post(
                self._url + path, data=data, headers=headers, allow_redirects=False
            ) as response:
                return await _read(response)
        except (aiohttp.ClientError, OSError) as error:  # a timeout is an OSError
            return Reply(*_reason(error))

    def _error(self, path: str, reply: Reply) -> OpenIMError:
        if reply.failure:
            return OpenIMAway(f"{self.name} {reply.failure}", reply.fault)
        if reply.status == 429:
            return OpenIMAway(f"{self.name} limits how often it may be asked (HTTP 429)", "limited")
        if reply.status >= 500:
            return OpenIMAway(f"{self.name} answers {path} with HTTP {reply.status}", "trouble")
        does = "redirects to another address" if reply.status in range(300, 400) else f"answers {path}"
        check = "check that PRESENCE_OPENIM_API leads to its API"
        return OpenIMRefuses(f"{self.name} {does} (HTTP {reply.status}): {check}", "another")


async def _read(response: aiohttp.ClientResponse) -> Reply:
    after = response.headers.get("Retry-After", "")
    pause_seconds = (float(after) if after.isdecimal() else 1.0) if response.status == 429 else 0.0
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > MOST_BYTES:
            return Reply(f"answers with more than {MOST_BYTES:,} bytes")
    return Reply(status=response.status, pause_seconds=pause_seconds, body=bytes(body))


#: What went wrong, by aiohttp's error; the first that fits.
_REASONS: dict[type[Exception], tuple[str, Fault]] = {
    aiohttp.ServerDisconnectedError: (_CUT, "trouble"),
    ConnectionResetError: (_CUT, "trouble"),
    BrokenPipeError: (_CUT, "trouble"),
    aiohttp.ClientConnectorCertificateError: ("shows a certificate that is not trusted here", "untrusted"),
    aiohttp.ClientConnectorSSLError: (
        "does not speak TLS: check whether PRESENCE_OPENIM_API must begin with http://",
        "another",
    ),
    aiohttp.ClientResponseError: ("does not speak HTTP: check that PRESENCE_OPENIM_API leads to its API", "another"),
}


def _reason(error: Exception) -> tuple[str, Fault]:
    """In our own words: aiohttp's error may show what was sent."""
    if isinstance(error, TimeoutError):
        return f"does not answer within {CALL_SECONDS:g} s", "late"
    for kind, reason in _REASONS.items():
        if isinstance(error, kind):
            return reason
    if isinstance(error, aiohttp.ClientConnectorError):
        number = error.os_error.errno
        why = os.strerror(number) if number and number > 0 else "its name cannot be looked up"
        return f"cannot be reached: {why}", "away"
    return f"gives no answer ({type(error).__name__})", "trouble"
