"""One question about some users: what we knew before it was asked, and what OpenIM says."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rq import Queue

from openim_presence.keys import Keys
from shared.gateways.batches import Name
from shared.gateways.process import Process
from shared.openim.client import MOST_IDS, OpenIM
from shared.redis.backend import Backend
from shared.redis.clock import ServerClock
from shared.truth import facts
from shared.truth.ours import Ours
from shared.truth.reach import Reach
from shared.truth.verdict import FRESH_MS, Theirs, Verdict, judge

#: Users in one question, besides the witnesses.
MOST_USERS = MOST_IDS - facts.MOST_WITNESSES
#: The gateways and their witnesses are read again when they are older than this.
GATEWAYS_SECONDS = 5.0


@dataclass
class Servers:
    """Where presence and the queue are. clock: that of the queue's server."""

    presence: Backend
    queue: Queue
    keys: Keys
    clock: ServerClock = field(init=False)

    def __post_init__(self) -> None:
        self.clock = ServerClock(self.queue.connection)


@dataclass(frozen=True, slots=True)
class Answer:
    """known: what we hold of the users, without those whose key cannot be read. theirs: what OpenIM says of each.

    asked_at_ms: by the clock of the queue's server. fresh_ms: users with an event within this time before it are
    skipped.
    """

    known: Mapping[str, Ours]
    theirs: Mapping[str, Theirs]
    reach: Reach
    asked_at_ms: int
    fresh_ms: int

    def verdicts(self) -> Iterator[Verdict]:
        """One for each user who differs from OpenIM."""
        for ours in self.known.values():
            if verdict := self.judge(ours):
                yield verdict

    def judge(self, ours: Ours, first: Verdict | None = None) -> Verdict | None:
        return judge(ours, self.theirs[ours.user_id], self.reach, self.asked_at_ms, first=first, fresh_ms=self.fresh_ms)


class Questions:
    """Asks OpenIM. Every method raises OpenIMError and RedisError. fresh_ms: as in Answer."""

    def __init__(self, openim: OpenIM, servers: Servers, fresh_ms: int = FRESH_MS) -> None:
        self._openim = openim
        self._fresh_ms = fresh_ms
        self._servers = servers
        self._looked_at = -GATEWAYS_SECONDS
        self._processes: dict[Name, Process] = {}
        self._witnesses: list[Ours] = []
        self._proven: dict[Name, str] = {}

    async def ask(self, user_ids: Sequence[str]) -> Answer:
        """user_ids: at most MOST_USERS."""
        if time.monotonic() - self._looked_at > GATEWAYS_SECONDS:
            self._look_at_gateways()
        servers = self._servers
        known = facts.read_users(servers.presence, servers.keys, user_ids)
        asked = {**known, **{each.user_id: each for each in self._witnesses}}
        asked_at_ms = servers.clock.now_ms()
        reach = Reach(self._processes, asked_at_ms)
        online = await self._openim.platforms(list(asked) or list(user_ids))
        reach.see(asked.values(), online)
        self._proven |= reach.answered
        is_old = self._openim.is_old
        connected = [name for name, ours in known.items() if is_old or any(scope.conn_id for scope in ours.sessions())]
        connections = (await self._openim.connections(connected)).of if connected else {}
        theirs = {name: Theirs(online.get(name, {}), connections.get(name), is_old=is_old) for name in known}
        answer = Answer(known, theirs, reach, asked_at_ms, self._fresh_ms)
        if not is_old:
            doubtful = [verdict.user_id for verdict in answer.verdicts() if verdict.doubtful]
            recorded = await self._openim.recorded(doubtful) if doubtful else {}
            theirs |= {name: replace(theirs[name], recorded=of) for name, of in recorded.items() if name in theirs}
        return answer

    def _look_at_gateways(self) -> None:
        servers = self._servers
        servers.clock.ask()
        self._processes = facts.read_gateways(servers.queue.connection, servers.keys)
        self._witnesses = facts.find_witnesses(
            servers.presence, servers.keys, self._processes, self._proven, servers.clock.now_ms()
        )
        self._looked_at = time.monotonic()
