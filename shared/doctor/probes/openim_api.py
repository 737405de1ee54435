"""Asks OpenIM's API what comparisons need, what time it has and, if it says so, which release it is."""

import asyncio
import time
from collections.abc import Awaitable
from typing import TypeVar

from shared.doctor.openim_api import ApiFacts
from shared.openim.client import OpenIM
from shared.openim.errors import OpenIMError
from shared.settings import Settings, without_password

#: For all questions together. One of them may take 5 s.
ASK_SECONDS = 7.0

T = TypeVar("T")


def ask(settings: Settings) -> ApiFacts:
    """Raises nothing, whatever OpenIM does."""
    return asyncio.run(_ask(settings, f"OpenIM at {without_password(settings.openim_api)}"))


async def _ask(settings: Settings, where: str) -> ApiFacts:
    until = time.monotonic() + ASK_SECONDS
    async with OpenIM(settings.openim_api, settings.openim_secret, settings.openim_admin) as openim:
        try:
            await asyncio.wait_for(openim.log_in(), ASK_SECONDS)
        except OpenIMError as error:
            return ApiFacts(where, error.fault, str(error))
        except TimeoutError:
            return ApiFacts(where, "late", f"{where} does not answer within {ASK_SECONDS:g} s")
        began = time.time_ns() // 1_000_000
        clock_ms = await _or_none(openim.clock_ms(), until)
        skew_ms = None if clock_ms is None else _skew_ms(clock_ms, began, time.time_ns() // 1_000_000)
        return ApiFacts(
            where, is_old=openim.is_old, release=await _or_none(openim.release(), until) or "", skew_ms=skew_ms
        )


async def _or_none(question: Awaitable[T], until: float) -> T | None:
    """The answer, or None. It only adds to what is known: OpenIM can be asked who is online."""
    try:
        return await asyncio.wait_for(question, max(0.0, until - time.monotonic()))
    except (OpenIMError, TimeoutError):
        return None


def _skew_ms(theirs: int, before: int, after: int) -> int:
    """How far a clock that was read between these two times is ahead; negative if it is behind."""
    return theirs - after if theirs > after else min(0, theirs - before)
