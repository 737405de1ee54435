"""One comparison of users with OpenIM: some users at a time, one question after the other.

We read what we hold before we ask OpenIM, and a correction gets its seq from that. So a callback that comes meanwhile,
or is still on its way, wins by its seq, and no clocks are compared.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterable, Callable, Sequence
from dataclasses import dataclass, replace

import openim_presence
from shared.events import encode
from shared.openim.client import OpenIM
from shared.openim.errors import OpenIMAway
from shared.queue import enqueue_encoded
from shared.truth import corrections
from shared.truth.findings import Action, Finding, Tally
from shared.truth.ledger import LedgerWriter
from shared.truth.ours import Ours
from shared.truth.questions import MOST_USERS, Answer, Questions, Servers
from shared.truth.verdict import FRESH_MS, Verdict, too_many

#: The pause before OpenIM is asked again: the same answer twice is a proof.
AGAIN_SECONDS = 10.0
#: If OpenIM leaves this many questions in a row unanswered, it counts as away.
MOST_FAILURES = 3

TOO_MANY = "too many would go offline at once without a witness; --force does it anyway"


@dataclass(slots=True)
class _Held:
    """A user whose sessions may be closed only after all users were compared. asked_at: seconds, monotonic clock."""

    ours: Ours
    verdict: Verdict
    asked_at: float


class Comparison:
    """fixes: whether differences are corrected. forces: even if too many users would go offline at once. tally: the
    counts so far, if this continues an interrupted comparison. fresh_ms: users with an event this recent are skipped.

    `report` is called for each finding, `skip` for each user who differs but is skipped, and `progress` after each
    question. `run` raises OpenIMError if OpenIM could not be asked, and RedisError. Corrections made before that
    remain.
    """

    def __init__(
        self,
        openim: OpenIM,
        servers: Servers,
        *,
        fixes: bool = True,
        forces: bool = False,
        tally: Tally | None = None,
        fresh_ms: int = FRESH_MS,
        report: Callable[[Finding], None] = lambda _: None,
        skip: Callable[[str], None] = lambda _: None,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        self._questions = Questions(openim, servers, fresh_ms)
        self._servers = servers
        self._fixes = fixes
        self._forces = forces
        self._report = report
        self._skip = skip
        self._progress = progress
        self.tally = tally or Tally()
        self._ledger = LedgerWriter(servers.queue.connection, servers.keys)
        self._put_right: Counter[str] = Counter()
        self._held: list[_Held] = []
        self._failures = 0

    async def run(self, users: AsyncIterable[str]) -> Tally:
        """Compares these users, and finishes."""
        some: dict[str, None] = {}
        async for user_id in users:
            some[user_id] = None
            if len(some) == MOST_USERS:
                await self.compare(list(some))
                some.clear()
        if some:
            await self.compare(list(some))
        return await self.finish()

    async def compare(self, user_ids: Sequence[str]) -> list[str]:
        """Compares at most MOST_USERS users. Returns those about whom `finish` decides, after all were compared."""
        answer = await self._ask(user_ids)
        if answer is None:
            self.tally.unknown += len(user_ids)
            self.tally.left += len(user_ids)
            return []
        asked_at, done, held_before = time.monotonic(), [], len(self._held)
        self.tally.compared += len(user_ids)
        self.tally.unknown += len(user_ids) - len(answer.known)
        for verdict in answer.verdicts():
            if verdict.is_fresh:
                self.tally.skipped += 1
                self._skip(verdict.user_id)
            elif answer.reach.is_known or not (verdict.doubtful or verdict.closings.corrections):
                done.append(verdict)
                self._tell(verdict)
            else:
                done.append(verdict.openings)
                self._held.append(_Held(answer.known[verdict.user_id], verdict, asked_at))
        self._send(done)
        self._progress()
        return [each.ours.user_id for each in self._held[held_before:]]

    async def finish(self) -> Tally:
        """If there are no witnesses, asks a second time about those who need it, then corrects all of them or none."""
        settled = [each.verdict for each in self._held if not each.verdict.needs_second]
        doubtful = [each for each in self._held if each.verdict.needs_second]
        for start in range(0, len(doubtful), MOST_USERS):
            settled += await self._ask_again(doubtful[start : start + MOST_USERS])
        leaving = sum(verdict.goes_offline for verdict in settled)
        is_blocked = leaving > 0 and too_many(
            leaving, openim_presence.users_online(self._servers.presence, self._servers.keys.prefix)
        )
        for verdict in settled:
            if is_blocked and not self._forces:
                self._tell(replace(verdict.openings, why=TOO_MANY), is_left=True)
            else:
                self._tell(replace(verdict, why="forced") if is_blocked and not verdict.doubtful else verdict)
        self._send([verdict.closings for verdict in settled] if not is_blocked or self._forces else [])
        return self.tally

    async def _ask_again(self, held: Sequence[_Held]) -> list[Verdict]:
        """The verdicts after the second answer. A user about whom it agrees with us has none."""
        await asyncio.sleep(max(0.0, max(each.asked_at for each in held) + AGAIN_SECONDS - time.monotonic()))
        answer = await self._ask([each.ours.user_id for each in held])
        if answer is None:
            return [each.verdict for each in held]
        self._progress()
        verdicts = []
        for each in held:
            # Judged by what we knew before the first question: if the user came back since, that has a higher seq.
            second = answer.judge(each.ours, each.verdict) if each.ours.user_id in answer.theirs else None
            if second:
                both = (*each.verdict.openings.corrections, *second.closings.corrections)
                verdicts.append(replace(second, corrections=both))
        return verdicts

    async def _ask(self, user_ids: Sequence[str]) -> Answer | None:
        """None if OpenIM does not answer this time."""
        try:
            answer = await self._questions.ask(user_ids)
        except OpenIMAway:
            self._failures += 1
            if self._failures == MOST_FAILURES or not self.tally.compared:
                raise
            return None
        self._failures = 0
        return answer

    def _send(self, verdicts: Sequence[Verdict]) -> None:
        now_ms = self._servers.clock.now_ms()
        events = [encode(event) for verdict in verdicts for event in corrections.events(verdict, now_ms)]
        if events and self._fixes:
            enqueue_encoded(self._servers.queue, events, now_ms)
        self._ledger.put_right(self._put_right)  # `finish` tells of users whose sessions `compare` opened
        self._put_right.clear()

    def _tell(self, verdict: Verdict, *, is_left: bool = False) -> None:
        finding = Finding(verdict, _action(verdict) if self._fixes else "none")
        if finding.action != "none":
            self._put_right[verdict.kind] += 1
        self.tally.add(finding, is_left=is_left or finding.action == "none" or bool(verdict.doubtful))
        self._report(finding)


def _action(verdict: Verdict) -> Action:
    if verdict.openings.corrections:
        return "opened"
    return "closed" if verdict.corrections else "none"
