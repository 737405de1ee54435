"""The HTTP side: a request in, an answer out, and in between an event in the journal."""

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from time import perf_counter

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.http_exceptions import HttpProcessingError
from multidict import istr

from receiver.callback import OtherCallback, Presence, Refusal, Refused, Route, check_path, read_body, read_route
from receiver.forward.forwarder import Forwarder
from receiver.http import access, answers
from receiver.http.body import Limit, MemoryBudget, OverBudget, check_type, read_rest
from receiver.http.head import refusal_of
from receiver.http.refusals import Refusals
from receiver.http.responses import CachedResponse, answer
from receiver.journal.journal import Journal
from receiver.lately import Lately
from receiver.metrics import OTHER, UNREADABLE, Counts
from shared.errors import Unavailable
from shared.events import describe, encode
from shared.settings import Settings

log = logging.getLogger("receiver")

OPERATION_ID = istr("operationID")  # a plain string would be lowercased for each look-up
#: The header in which proxies name their peers; each proxy may add a line.
FORWARDED_FOR = "X-Forwarded-For"


class Receiver:
    """Answers callbacks. Only `handle` touches the network; nothing here waits for Redis.

    appended: called after each event that the journal took. durable: awaited before each answer, if set.
    forwarder: takes the callbacks that are not ours, if set.
    """

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        counts: Counts,
        lately: Lately,
        appended: Callable[[], None],
        durable: Callable[[], Awaitable[None]] | None = None,
        forwarder: Forwarder | None = None,
    ) -> None:
        self._access = access.make(settings)
        self._prefix = settings.callback_path
        self._limit = Limit(settings.max_body_bytes, "PRESENCE_MAX_BODY_BYTES")
        #: The limit of a body whose URL does not say that it is ours.
        self._other_limit = forwarder.limit if forwarder else self._limit
        self._budget = MemoryBudget(max(settings.max_body_bytes, settings.forward_max_bytes))
        self._journal = journal
        self._counts = counts
        self._appended = appended
        self._durable = durable
        self._forwarder = forwarder
        self._copy = forwarder.copy if forwarder and forwarder.takes_copies else None
        self._lately = lately
        self._last_of = lately.accepted
        self._refusals = Refusals(settings.callback_path, lately)
        #: Random, so that a process that follows this one, or runs beside it, begins with another id.
        self._ids = itertools.count(secrets.randbits(48))
        self._debug = log.isEnabledFor(logging.DEBUG)  # read once: a request takes 30 µs
        self._accepted = CachedResponse(answers.accepted(Presence(None, "body")))
        self._document = CachedResponse(answers.accepted(Presence(None, "document")))

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        route = read_route(request.raw_path)
        try:
            return await self._judge(request, route)
        except Refused as refused:
            return self._refuse(request, route, refused.refusal)
        except Unavailable as reason:
            return self._unavailable(request, route, reason)
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception:
            log.exception("a request could not be answered, because of a bug")
            return self._refuse(request, route, Refusal(503, "this receiver has a defect", "see its log"))

    def unreadable(self, peer: str, error: HttpProcessingError) -> web.Response:
        """The answer to what is not a request: its head is too large, or it is not HTTP."""
        refusal = refusal_of(error)
        self._counts.other("refused", refusal.status, OTHER, UNREADABLE)
        self._refusals.note_unreadable(peer, refusal, error)
        response = answer(refusal.status, answers.refused(refusal))
        response.force_close()
        return response

    async def _judge(self, request: web.BaseRequest, route: Route) -> web.StreamResponse:
        """The whole way of a request, with the checks of docs/openim-versions.md in their order.

        Raises Refused, Unavailable if the event cannot be stored, and ConnectionError.
        """
        started = perf_counter()
        headers, peer = request.headers, request.remote or ""
        if self._access is not None:
            peer = self._access.check(peer, headers.getall(FORWARDED_FOR, ()), headers.get(hdrs.AUTHORIZATION))
        if request.method != hdrs.METH_POST:
            raise Refused(
                405, "callbacks are sent with POST", "the page for people is at the port of PRESENCE_ADMIN_PORT"
            )
        check_path(request.raw_path, self._prefix)
        if isinstance(route, OtherCallback):
            check_type(headers)
            return await self._pass_on(request, route)

        limit = self._limit if isinstance(route, Presence) and route.command else self._other_limit
        content = request.content
        # Nearly all bodies come in one piece with their headers.
        body = content.read_nowait() if content.is_eof() else await read_rest(request, limit, self._budget)
        if len(body) > limit.size:
            raise limit.passed()
        check_type(headers)
        if isinstance(route, Refusal):
            return self._refuse(request, route, route)
        received_at = time.time_ns() // 1_000_000
        event = read_body(route, headers.get(OPERATION_ID), body, received_at, f"{next(self._ids):x}", peer)
        if isinstance(event, OtherCallback):
            return await self._pass_on(request, event, body)

        self._journal.append(encode(event))
        self._appended()
        if self._durable:
            await self._durable()
        if self._copy is not None:
            self._copy(request, body)
        if self._debug:
            log.debug("accepted", extra=describe(event))
        self._last_of[event.command] = event
        self._counts.accepted(event.command, route.url_form, started)
        if request.keep_alive and request.version >= HttpVersion11:
            return self._document if route.url_form == "document" else self._accepted
        return answer(200, answers.accepted(route))

    async def _pass_on(
        self, request: web.BaseRequest, other: OtherCallback, body: bytes | None = None
    ) -> web.StreamResponse:
        """Handles a foreign callback. body: if it had to be read to find the command.

        Raises Refused (413 or 400) and ConnectionError.
        """
        if self._debug:
            named = {"operation_id": request.headers.get(OPERATION_ID, ""), "command": other.command}
            log.debug("not ours", extra=named)
        self._lately.foreign(other.command, request.remote or "")
        if self._forwarder is None:
            self._counts.other("foreign", 404)
            return answer(404, answers.not_ours(other))
        response = await self._forwarder.answer(request, body)
        self._counts.other("forwarded", response.status)
        return response

    def _unavailable(self, request: web.BaseRequest, route: Route, reason: Unavailable) -> web.Response:
        is_unknown = isinstance(route, Presence) and route.command is None
        if isinstance(reason, OverBudget) and is_unknown and self._forwarder is not None:
            self._counts.other("forwarded", 502)
            return self._forwarder.give_up(str(reason))
        return self._refuse(request, route, Refusal(503, "the event cannot be stored now", str(reason)))

    def _refuse(self, request: web.BaseRequest, route: Route, refusal: Refusal) -> web.Response:
        command = url_form = OTHER
        if isinstance(route, Presence):
            command, url_form = route.command or refusal.command or OTHER, route.url_form
        self._counts.other("refused", refusal.status, command, url_form)
        if not refusal.command:
            self._refusals.note(request, refusal)
        if self._debug:
            named = {"operation_id": request.headers.get(OPERATION_ID, ""), "command": command}
            log.debug("refused with %d: %s. %s", refusal.status, refusal.message, refusal.detail, extra=named)
        return answer(refusal.status, answers.refused(refusal))
