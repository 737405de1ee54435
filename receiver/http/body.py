"""A request's body: its type, its size, and the time it may take."""

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

from aiohttp import HttpVersion11, hdrs, web

from receiver.callback import Refused
from receiver.http.responses import JSON
from shared.errors import Unavailable

#: OpenIM itself gives up after 5 s, so a peer that takes longer is not OpenIM, or no longer waits.
BODY_SECONDS = 10.0
ROOM_BYTES = 32 << 20
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Limit(NamedTuple):
    """The most bytes that a body may have, and the setting that limits it."""

    size: int
    variable: str

    def passed(self) -> Refused:
        # A new one each time: an exception raised twice keeps every frame that it went through.
        return Refused(413, "the body is too large", f"body: at most {self.variable}")


class OverBudget(Unavailable):
    """There is no memory left for another large body."""


class MemoryBudget:
    """Memory for bodies that are held at the same time, in bytes; it always suffices for two of the largest."""

    def __init__(self, largest: int) -> None:
        self._free = max(ROOM_BYTES, 2 * largest)

    def take(self, size: int) -> None:
        """Raises OverBudget if there is not that much left."""
        if size > self._free:
            raise OverBudget("too many large bodies at one time")
        self._free -= size

    def give_back(self, size: int) -> None:
        self._free += size


def check_type(headers: Mapping[str, str]) -> None:
    """Raises Refused (415) for anything but plain JSON in UTF-8."""
    value = headers.get(hdrs.CONTENT_TYPE, "")
    if value != JSON:
        media_type, _, parameters = value.lower().partition(";")
        charset = parameters.replace(" ", "").replace('"', "").partition("charset=")[2].partition(";")[0]
        if media_type.strip() != "application/json" or charset not in ("", "utf-8", "utf8"):
            raise Refused(415, "only JSON is taken", "Content-Type: must be application/json in UTF-8")
    if headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
        raise Refused(415, "only plain bodies are taken", "Content-Encoding: must be absent")


async def read_rest(request: web.BaseRequest, limit: Limit, room: MemoryBudget) -> bytes:
    """The body of a request that came without all of it. Raises Refused and Unavailable."""
    if (request.content_length or 0) > limit.size:
        raise limit.passed()
    await ask_for(request)
    body = bytearray()
    taken = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while piece := await request.content.readany():
                if len(body) + len(piece) > limit.size:
                    raise limit.passed()
                room.take(len(piece))
                taken += len(piece)
                body += piece
    except TimeoutError:
        raise Refused(408, "the body came too slowly", f"body: must arrive within {BODY_SECONDS:g} s") from None
    except web.RequestPayloadError:
        raise broken_off() from None
    finally:
        room.give_back(taken)
    return bytes(body)


def broken_off() -> Refused:
    return Refused(400, "the body is broken off or garbled", "body: not what its headers say")


async def ask_for(request: web.BaseRequest) -> None:
    """Tells a peer that sent `Expect: 100-continue` to send its body. HTTP/1.0 knows no such answer."""
    expects = request.headers.get(hdrs.EXPECT, "").lower() == "100-continue"
    if expects and request.version >= HttpVersion11:
        await request.writer.write(_CONTINUE)
        request.writer.output_size = 0  # else aiohttp would believe that the answer has begun
