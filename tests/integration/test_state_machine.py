"""Events, renewals, sweeps and forgetting, in any order, against tests/model.py."""

import time

import model
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from redis import Redis
from support import with_constants

from shared.events import COMMANDS, Event
from shared.settings import Settings
from worker.store.store import Poison, Store

LEASE_SECONDS, RETENTION_SECONDS = 10, 1000
USERS = ("alice", "bob")
#: Unix milliseconds of today, since an event received longer ago than users are remembered opens nothing.
NOW = time.time_ns() // 1_000_000_000 * 1000


@st.composite
def events(draw: st.DrawFn) -> Event:
    """One callback; those of one operationID that are near in time are a batch, and are received together."""
    operation_id = draw(st.sampled_from(["", "", "op1", "op2", "two containers"]))
    seq = draw(st.integers(0, 12)) + draw(st.sampled_from([0, model.BATCH_MS] if operation_id else [0]))
    second = 4 * len(operation_id) + seq // model.BATCH_MS if operation_id else draw(st.integers(1, 60))
    return Event(
        user_id=draw(st.sampled_from(USERS)),
        command=draw(st.sampled_from(sorted(COMMANDS))),  # type: ignore[arg-type]
        seq=seq,
        conn_id=draw(st.sampled_from(["", "", "", "a", "b"])),
        platform_id=draw(st.integers(0, 2)),
        platform="",
        operation_id=operation_id,
        received_at=NOW + 1000 * second,
        id=draw(st.sampled_from(["1", "2"])) if operation_id else "",
    )


class Presence(RuleBasedStateMachine):
    def __init__(self, redis: Redis) -> None:
        super().__init__()
        redis.flushall()
        self.redis = redis
        self.store = Store(redis, Settings(online_lease_seconds=LEASE_SECONDS, retention_seconds=RETENTION_SECONDS))
        self.model = model.Leased(1000 * LEASE_SECONDS)
        self.applied: list[Event] = []

    @rule(batch=st.lists(events(), min_size=1, max_size=6))
    def apply(self, batch: list[Event]) -> None:
        assert not any(isinstance(result, Poison) for result in self.store.apply(batch))
        self.model.apply(batch)
        self.applied += batch

    @rule(data=st.data())
    def apply_again(self, data: st.DataObject) -> None:
        """Delivers a batch again, as after a killed worker, or a push whose answer was lost."""
        if self.applied:
            again = data.draw(st.lists(st.sampled_from(self.applied), max_size=4))
            before = self.model.changes.copy()
            self.store.apply(again)
            self.model.apply(again)
            assert self.model.changes == before or self.model.has_summed_up({event.user_id for event in again})

    @rule(until=st.integers(0, 80).map(lambda second: NOW + 1000 * second))
    def sweep(self, until: int) -> None:
        if due := self.store.due(until, 100):
            self.store.review(list(due), until, until, due)
        self.model.sweep(until)

    @rule()
    def review_all(self) -> None:
        """Reviews all users, as after a change of settings: it must change nothing."""
        self.store.review(list(self.store.user_ids()), 0, NOW + 99_000)

    @rule(user=st.sampled_from(USERS))
    def retention_passes(self, user: str) -> None:
        if self.model.status.get(user) == "offline":
            assert 0 < self.redis.ttl(f"presence:{user}") <= RETENTION_SECONDS
            self.redis.delete(f"presence:{user}")  # what the server does then
            self.model.forget(user)
            self.applied = [event for event in self.applied if event.user_id != user]

    @invariant()
    def all_is_as_in_the_model(self) -> None:
        leases = dict(self.redis.zrange("presence-leases", 0, -1, withscores=True))
        online = 0
        for user in USERS:
            found = self.redis.hmget(f"presence:{user}", "status", "sessions", "platforms")
            sessions = self.model.sessions(user)
            if user not in self.model.status:
                assert found == [None, None, None]
                assert self.redis.ttl(f"presence:{user}") == -2
                continue
            online += self.model.status[user] == "online"
            platforms = ",".join(map(str, self.model.platforms(user)))
            assert found == [self.model.status[user].encode(), b"%d" % len(sessions), platforms.encode()]
            assert leases.get(user.encode()) == self.model.lease_ends(user)
            assert (self.redis.ttl(f"presence:{user}") == -1) == bool(sessions)
        assert int(self.redis.hget("presence-stats", "users_online") or 0) == online
        changes = [
            tuple(fields[name].decode() for name in (b"user_id", b"previous", b"status", b"command"))
            for _, fields in self.redis.xrange("presence-changes")
        ]
        assert changes == self.model.changes


@pytest.mark.parametrize("tallied", [16, 1], ids=["all is read", "a part is read"])
def test_presence_is_what_the_rules_say(redis: Redis, monkeypatch: pytest.MonkeyPatch, tallied: int) -> None:
    with_constants(monkeypatch, TALLIED_MIN=tallied)
    run_state_machine_as_test(
        lambda: Presence(redis),
        settings=settings(
            max_examples=40,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=set(Phase) - {Phase.shrink},  # which takes minutes over a server; remove this line to have it
        ),
    )
