"""A gateway whose clock is ahead, through the job that RQ runs."""

import itertools
import logging
from collections.abc import Iterator
from unittest.mock import patch

import pytest
from redis import Redis
from support import on_one_server

from shared.events import Command, Event
from shared.observe.counters import Stats
from shared.settings import Settings
from worker import jobs
from worker.store.store import Store

pytestmark = on_one_server

ON: Command = "callbackAfterUserOnlineCommand"
OFF: Command = "callbackAfterUserOfflineCommand"
EIGHT_HOURS = 8 * 3_600_000
LEASE = 10
NOW = 1_795_569_386_000
_ids = itertools.count()


@pytest.fixture(autouse=True)
def store(redis: Redis) -> Iterator[Store]:
    store = Store(redis, Settings(online_lease_seconds=LEASE))
    with patch.object(jobs, "_store", lambda: store):
        yield store


def take(command: Command, at: int, lead: int = 0, operation_id: str = "") -> None:
    """One callback of alice's phone, taken at NOW + at and stamped by a clock that is ahead."""
    event_id = f"{next(_ids):x}"
    event = Event("alice", command, NOW + at + lead, "", 1, "IOS", operation_id, NOW + at, event_id, "10.0.0.7")
    assert jobs.apply_batch([list(event)]) is None


def shown(redis: Redis) -> dict[str, str]:
    fields = redis.hgetall("presence:alice")
    return {name.decode(): value.decode() for name, value in fields.items()}


def test_what_comes_next_from_a_gateway_with_the_right_time_counts(redis: Redis) -> None:
    take(OFF, 0, lead=EIGHT_HOURS)
    take(ON, 5)
    assert (shown(redis)["status"], shown(redis)["seq"]) == ("online", str(NOW + 5))
    take(ON, 10, lead=EIGHT_HOURS)
    assert (shown(redis)["status"], shown(redis)["seq"]) == ("online", str(NOW + 10))
    take(OFF, 15)
    assert shown(redis)["status"] == "offline"


def test_who_renews_stays_online_whichever_gateway_renews(redis: Redis, store: Store) -> None:
    take(ON, 0, lead=EIGHT_HOURS)
    for at in range(1000, 30_000, 1000):
        take(ON, at)
        due = store.due(NOW + at, 10)
        assert store.review(list(due), NOW + at, NOW + at, due) == 0
    assert shown(redis)["status"] == "online"
    due = store.due(NOW + 60_000, 10)
    assert store.review(list(due), NOW + 60_000, NOW + 60_000, due) == 1


def test_it_is_counted_and_logged_with_user_and_lead(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    take(OFF, 0, lead=EIGHT_HOURS, operation_id="p_7_1")
    take(OFF, 10)
    assert Stats.of(redis.hgetall("presence-stats")).clock_ahead == 1
    (line,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert line.user_id == "alice"  # type: ignore[attr-defined]
    assert "28800.0 s ahead" in line.getMessage()


def test_a_batch_stays_a_batch(redis: Redis) -> None:
    """A phone that comes and goes within a second: named both online and offline, and not online before."""
    take(ON, 0, lead=EIGHT_HOURS, operation_id="p_7_1")
    take(OFF, -1, lead=EIGHT_HOURS, operation_id="p_7_1")
    assert (shown(redis)["status"], shown(redis)["operation_id"]) == ("offline", "p_7_1")


def test_an_event_delivered_again_is_the_same_event(redis: Redis) -> None:
    event = list(Event("alice", OFF, NOW + EIGHT_HOURS, "", 1, "IOS", "", NOW, "one", "10.0.0.7"))
    jobs.apply_batch([event])
    before = shown(redis)
    jobs.apply_batch([event])
    assert shown(redis) == before
