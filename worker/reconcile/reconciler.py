"""A thread in every worker that compares presence with OpenIM; one of them has the turn.

In every period it compares all users who are shown online, and in every tenth all of OpenIM's users, spread over the
period. The list of those who are left is in Redis, so if a worker is killed, another goes on from there. After a loss
it compares at once; see triggers.py. It asks again about users who had an event just now; see doubtful.py.
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from redis.exceptions import RedisError

from shared import reports
from shared.errors import Unavailable
from shared.gateways import records
from shared.gateways.batches import Name
from shared.logs.outage import Outage
from shared.openim.client import OpenIM
from shared.openim.errors import OpenIMError
from shared.queue import open_queue
from shared.redis.client import connect
from shared.redis.turn import Turn
from shared.settings import Settings, without_password
from shared.truth import facts, people
from shared.truth.comparison import Comparison
from shared.truth.findings import Finding, Tally
from shared.truth.ledger import LedgerWriter
from shared.truth.questions import MOST_USERS, Servers
from shared.truth.reach import Home, Reach
from worker.reconcile.doubtful import WAIT_MS, Doubtful
from worker.reconcile.state import Round, State
from worker.reconcile.triggers import Urgent, look

STEP_SECONDS = 1.0
#: How long a worker that is gone keeps the turn; a question takes less.
TURN_SECONDS = 30.0
#: How often it checks whether anything was lost, and how often at most it compares because of that.
LOOK_SECONDS = 5.0
URGENT_SECONDS = 30.0
#: A round should take this share of the period.
SHARE = 0.9
#: All of OpenIM's users are compared in one of this many periods, beginning with the first.
ALL_EVERY = 10

log = logging.getLogger("worker.reconcile")


class _NotOurs(Exception):
    """Another worker has the turn, or this one stops."""


class Reconciler(threading.Thread):
    """Compares until `stopping` is set."""

    def __init__(self, settings: Settings, stopping: threading.Event) -> None:
        super().__init__(name="reconcile", daemon=True)
        self._settings = settings
        self._stopping = stopping
        self._period_ms = settings.reconcile_seconds * 1000
        queue = connect(settings.queue_url)
        self._queue = queue
        self._servers = Servers(connect(settings.redis_url), open_queue(queue, settings), settings.keys)
        self._turn = Turn(queue, settings.keys.reconciler, TURN_SECONDS)
        self._state = State(queue, settings.keys)
        self._doubtful = Doubtful(queue, settings.keys)
        self._ledger = LedgerWriter(queue, settings.keys)
        where = without_password(settings.openim_api)
        self._outage = Outage(log, f"OpenIM's API, {where},", first_seconds=5.0, longest_seconds=60.0)
        self._skipped: list[str] = []
        self._rests_until = self._looked_at = self._urgent_at = self._kept_at = -URGENT_SECONDS
        #: Whether another worker, or none, may have had the turn since this one last looked.
        self._took_over = True

    def run(self) -> None:
        while not self._stopping.wait(STEP_SECONDS):
            try:
                asyncio.run(self._serve())
            except (RedisError, Unavailable) as error:
                log.debug("nothing is compared with OpenIM now: %s", error)  # the worker itself logs such outages
            except Exception:
                log.exception("comparing with OpenIM failed; trying again")

    async def _serve(self) -> None:
        settings = self._settings
        async with OpenIM(settings.openim_api, settings.openim_secret, settings.openim_admin) as openim:
            while not self._stopping.is_set():
                with suppress(_NotOurs):
                    await self.step(openim)
                await asyncio.sleep(STEP_SECONDS)
        self._turn.give_up()

    async def step(self, openim: OpenIM) -> None:
        """Does what is due now. Raises RedisError, and _NotOurs if another worker has the turn."""
        if time.monotonic() < self._rests_until:
            return
        self._keep_turn()
        try:
            await self._look(openim)
            await self._ask_about_doubtful(openim)
            await self._go_on(openim)
        except OpenIMError as error:
            self._rests_until = time.monotonic() + self._outage.failed(error)
            self._ledger.failed(str(error), self._now_ms())

    def _keep_turn(self) -> None:
        if self._stopping.is_set() or not self._turn.take():
            self._took_over = True
            raise _NotOurs
        self._kept_at = time.monotonic()

    def _keep_turn_now_and_then(self) -> None:
        """For what is done very often."""
        if time.monotonic() - self._kept_at >= STEP_SECONDS:
            self._keep_turn()

    def _now_ms(self) -> int:
        self._servers.clock.ask()
        return self._servers.clock.now_ms()

    def _comparison(self, openim: OpenIM, **more: Any) -> Comparison:
        """Raises _NotOurs after a question if another worker got the turn meanwhile."""
        more |= {"fixes": bool(self._settings.reconcile_fix), "progress": self._keep_turn}
        return Comparison(openim, self._servers, report=_tell_user, skip=self._skipped.append, **more)

    # All users, in turn.

    async def _go_on(self, openim: OpenIM) -> None:
        this, tally, _ = self._state.read()
        if not (this.is_listed and self._state.first(1)):
            if not this.wants_all and self._now_ms() - this.began_ms < self._period_ms:
                return
            this, tally = await self._begin(openim, this), Tally()
        comparison = self._comparison(openim, tally=tally)
        held = 0  # at the end of the list: if this worker stops, another asks about them, and counts them
        while (left := self._state.left() - held) > MOST_USERS:
            again = await self._compare(comparison, self._state.first(MOST_USERS))
            held += len(again)
            self._state.done(MOST_USERS, again)
            self._state.write_tally(replace(comparison.tally, compared=comparison.tally.compared - held))
            await self._pause(openim, this, left - MOST_USERS)
        if left:
            await self._compare(comparison, self._state.first(left))
        # The last ones stay in the list until the result is written: if this worker stops now, another goes on.
        self._tell(await comparison.finish())
        self._state.done(left + held)

    async def _compare(self, comparison: Comparison, some: Sequence[str]) -> list[str]:
        """The users whose sessions may be closed only at the end."""
        held = await comparison.compare(some)
        self._ask_later()
        self._outage.over()
        return held

    async def _begin(self, openim: OpenIM, last: Round) -> Round:
        """Lists the users to compare."""
        servers, state = self._servers, self._state
        this = Round(last.number + 1, self._now_ms())
        state.clear()
        keep = self._keep_turn_now_and_then
        if last.number % ALL_EVERY == 0 or last.wants_all:
            users = people.everybody(servers.presence, servers.keys, openim, keep)
        else:
            users = people.shown_online(servers.presence, servers.keys, keep)
        some: list[str] = []
        async for user_id in users:
            some.append(user_id)
            if len(some) == MOST_USERS:
                self._keep_turn()
                state.add(some)
                some.clear()
        self._keep_turn()
        state.add(some)
        this.is_listed = 1
        state.write_round(this)
        state.write_tally(Tally())
        return this

    async def _pause(self, openim: OpenIM, this: Round, left: int) -> None:
        """Waits until the next question is due, so that those who are left fill the period."""
        questions = -(-left // MOST_USERS)
        ends_ms = this.began_ms + SHARE * self._period_ms
        until = time.monotonic() + max(0.0, ends_ms - self._now_ms()) / 1000 / questions if questions else 0.0
        while True:
            self._keep_turn()
            await self._look(openim)
            await self._ask_about_doubtful(openim)
            rest = until - time.monotonic()
            if rest <= 0:
                return
            await asyncio.sleep(min(rest, STEP_SECONDS))

    def _tell(self, tally: Tally, why: str = "") -> None:
        self._outage.over()
        self._ledger.compared(tally, self._now_ms())
        log.info(
            "compared %d users with OpenIM%s: %d ghosts, %d missing, %d on other platforms, %d unknown, %d too fresh",
            *(tally.compared, why, tally.ghost, tally.missing, tally.platforms, tally.unknown, tally.skipped),
        )

    # At once, after a loss.

    async def _look(self, openim: OpenIM) -> None:
        """Compares the users for whom something may have been lost since the last look."""
        if time.monotonic() - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = time.monotonic()
        this, _, before = self._state.read()
        now_ms, keys = self._now_ms(), self._settings.keys
        fields: Any = self._queue.hgetall(keys.gateways)
        reported: Any = self._queue.hgetall(keys.receivers)
        receivers = []
        for name, value in reported.items():
            with suppress(ValueError):
                receivers.append(reports.decode(name, value))
        seen, urgent = look(before, records.read(fields, now_ms), receivers, now_ms, took_over=self._took_over)
        if urgent:
            if time.monotonic() - self._urgent_at < URGENT_SECONDS:
                return  # it will be seen again
            self._urgent_at = time.monotonic()
            await self._compare_now(openim, urgent)
        if urgent.everybody and not this.wants_all:
            this.wants_all = 1
            self._state.write_round(this)
        self._state.write_seen(seen)
        self._took_over = False

    async def _ask_about_doubtful(self, openim: OpenIM) -> None:
        """Asks about MOST_USERS at most. Who had another event within the last second waits once more; whatever comes
        later wins by its seq.
        """
        now_ms = self._now_ms()
        if not (some := self._doubtful.take(now_ms, MOST_USERS)):
            return
        await self._comparison(openim, fresh_ms=WAIT_MS // 2).run(people.these(some))
        self._doubtful.asked([user_id for user_id in some if user_id not in self._skipped], now_ms)
        self._ask_later()

    def _ask_later(self) -> None:
        """About those who differed but had an event just now; otherwise they would wait for the next period."""
        if self._skipped:
            self._doubtful.add(self._skipped, self._now_ms())
            self._skipped.clear()

    async def _compare_now(self, openim: OpenIM, urgent: Urgent) -> None:
        servers = self._servers
        users = people.shown_online(servers.presence, servers.keys, self._keep_turn_now_and_then)
        if not urgent.online:
            users = self._at(urgent.gone, users)
        tally = await self._comparison(openim).run(users)
        self._ask_later()
        if urgent.online:
            self._tell(tally, " at once, since callbacks may be lost")
        else:
            log.info("compared %d users of gateways that are gone: %d ghosts", tally.compared, tally.ghost)

    async def _at(self, gone: frozenset[Name], users: AsyncIterator[str]) -> AsyncIterator[str]:
        """Those of the users who may have been at these gateway processes."""
        processes = facts.read_gateways(self._queue, self._servers.keys)
        reach, some = Reach(processes, self._now_ms()), []
        async for user_id in users:
            some.append(user_id)
            if len(some) == MOST_USERS:
                for found in self._those_at(gone, reach, some):
                    yield found
                some = []
        for found in self._those_at(gone, reach, some):
            yield found

    def _those_at(self, gone: frozenset[Name], reach: Reach, user_ids: list[str]) -> list[str]:
        known = facts.read_users(self._servers.presence, self._servers.keys, user_ids)
        return [
            user_id
            for user_id, ours in known.items()
            if any(_may_be_at(gone, reach.homes(ours, platform_id)) for platform_id in ours.platforms())
        ]


def _tell_user(finding: Finding) -> None:
    verdict = finding.verdict
    log.debug(
        "%s: online on platforms %s here, on %s in OpenIM; %s: %s",
        *(verdict.kind, _listed(verdict.ours), _listed(verdict.openim), finding.action, verdict.why),
        extra={"user_id": verdict.user_id},
    )


def _listed(platforms: Iterable[int]) -> str:
    return ",".join(map(str, platforms)) or "none"


def _may_be_at(gone: frozenset[Name], homes: Sequence[Home]) -> bool:
    """If a correction opened the session, no gateway is known, and it may be at any."""
    return not homes or any(home.name in gone for home in homes)
