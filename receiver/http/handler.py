"""The HTTP side: a request in, an answer out, and an event in the journal between the two."""

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from time import perf_counter

from aiohttp import HttpVersion11, hdrs, web

from receiver.callback import (
    OtherCallback,
    Refused,
    Target,
    accepted,
    check_path,
    not_ours,
    read_body,
    read_target,
    refused,
)
from receiver.forward.forwarder import Forwarder
from receiver.http import access
from receiver.http.body import Limit, MemoryBudget, OverBudget, check_type, read_rest
from receiver.http.responses import CachedResponse, Refusals, answer
from receiver.journal.journal import Journal
from receiver.metrics import OTHER, Counts
from shared.errors import Unavailable
from shared.events import describe, encode
from shared.settings import Settings

log = logging.getLogger("receiver")

OPERATION_ID = "operationID"
#: Where a proxy says for whom it speaks; each proxy may add a line.
FORWARDED_FOR = "X-Forwarded-For"


class Receiver:
    """Answers callbacks. Only `handle` touches the network; nothing here waits for Redis.

    appended: called after each event that the journal took. durable: awaited before each answer, where set.
    forwarder: takes the callbacks that are not ours, where set.
    """

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        counts: Counts,
        appended: Callable[[], None],
        durable: Callable[[], Awaitable[None]] | None = None,
        forwarder: Forwarder | None = None,
    ) -> None:
        self._access = access.make(settings)
        self._prefix = settings.callback_path
        self._limit = Limit(settings.max_body_bytes, "PRESENCE_MAX_BODY_BYTES")
        self._room = MemoryBudget(max(settings.max_body_bytes, settings.forward_max_bytes))
        self._journal = journal
        self._counts = counts
        self._appended = appended
        self._durable = durable
        self._forwarder = forwarder
        self._copy = forwarder.copy if forwarder and forwarder.takes_copies else None
        self._refusals = Refusals(settings.callback_path)
        #: A process that follows this one, or runs beside it, begins somewhere else.
        self._ids = itertools.count(secrets.randbits(48))
        self._debug = log.isEnabledFor(logging.DEBUG)  # asked once: a request is 30 µs
        self._accepted = CachedResponse(accepted(Target(None, "body")))
        self._document = CachedResponse(accepted(Target(None, "document")))

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        started = perf_counter()
        try:
            try:
                target, command = await self._accept(request)
            except OtherCallback as foreign:
                return await self._pass_on(request, foreign)
        except Refused as refusal:
            if not refusal.command:
                self._refusals.note(request, refusal)
            return self._refuse(request, refusal)
        except Unavailable as reason:
            return self._unavailable(request, reason)
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception:
            log.exception("a request could not be answered as it should")
            return self._refuse(request, Refused(503, "this receiver has a defect", "see its log"))
        self._counts.accepted(command, target.shape, started)
        if request.keep_alive and request.version >= HttpVersion11:
            return self._document if target.shape == "document" else self._accepted
        return answer(200, accepted(target))

    async def _accept(self, request: web.BaseRequest) -> tuple[Target, str]:
        """Runs the checks of docs/openim-versions.md in their order and stores the event.

        Returns what to answer to, and the command.
        """
        headers = request.headers
        if self._access is not None:
            forwarded = headers.getall(FORWARDED_FOR, ())
            self._access.check(request.remote, forwarded, headers.get(hdrs.AUTHORIZATION))
        if request.method != hdrs.METH_POST:
            raise Refused(405, "callbacks are sent with POST")
        check_path(request.raw_path, self._prefix)
        limit = self._limit if self._forwarder is None else self._limit_of(request, self._forwarder)
        content = request.content
        # Nearly all bodies come in one piece with their headers.
        body = content.read_nowait() if content.is_eof() else await read_rest(request, limit, self._room)
        if len(body) > limit.size:
            raise limit.passed()
        check_type(headers)
        try:
            target = read_target(request.raw_path)
            event = read_body(
                target,
                headers.get(OPERATION_ID),
                body,
                time.time_ns() // 1_000_000,
                f"{next(self._ids):x}",
                request.remote or "",
            )
        except OtherCallback as foreign:
            foreign.body = body
            raise
        self._journal.append(encode(event))
        self._appended()
        if self._durable:
            await self._durable()
        if self._copy is not None:
            self._copy(request, body)
        if self._debug:
            log.debug("accepted", extra=describe(event))
        return target, event.command

    def _limit_of(self, request: web.BaseRequest, forwarder: Forwarder) -> Limit:
        """Raises Foreign where the URL says so: such a body is passed on as it comes."""
        try:
            if read_target(request.raw_path).command is not None:
                return self._limit
        except OtherCallback:
            if (request.content_length or 0) > forwarder.limit.size:
                raise forwarder.limit.passed() from None
            check_type(request.headers)
            raise
        except Refused:
            pass  # for when the body has been checked
        return forwarder.limit

    async def _pass_on(self, request: web.BaseRequest, foreign: OtherCallback) -> web.StreamResponse:
        if self._debug:
            named = {"operation_id": request.headers.get(OPERATION_ID, ""), "command": foreign.command}
            log.debug("not ours", extra=named)
        if self._forwarder is None:
            self._counts.other("foreign", 404)
            return answer(404, not_ours(foreign))
        response = await self._forwarder.answer(request, foreign.body)
        self._counts.other("forwarded", response.status)
        return response

    def _unavailable(self, request: web.BaseRequest, reason: Unavailable) -> web.Response:
        if isinstance(reason, OverBudget) and self._forwarder is not None:  # nobody knows whose callback it is
            self._counts.other("forwarded", 502)
            return self._forwarder.give_up(str(reason))
        return self._refuse(request, Refused(503, "the event cannot be stored now", str(reason)))

    def _refuse(self, request: web.BaseRequest, refusal: Refused) -> web.Response:
        command = shape = OTHER
        with suppress(Refused, OtherCallback):
            target = read_target(request.raw_path)
            command, shape = target.command or refusal.command or OTHER, target.shape
        self._counts.other("refused", refusal.status, command, shape)
        if self._debug:
            named = {"operation_id": request.headers.get(OPERATION_ID, ""), "command": command}
            log.debug("refused with %d: %s. %s", refusal.status, refusal.message, refusal.detail, extra=named)
        return answer(refusal.status, refused(refusal))
