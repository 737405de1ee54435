"""What is done without an event that triggers it, by a sweeper of the test's own."""

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis
from support import Server, free_port, on_one_server, wait_until

from shared.events import Event
from shared.settings import Settings
from worker.store.store import Store
from worker.sweep.sweeper import Sweeper

LEASED = {"online_lease_seconds": 1000}
ONLINE = Event("u", "callbackAfterUserOnlineCommand", 5, "", 1, "", "", 1000)


def sweeper(server: Server, **settings: Any) -> Sweeper:
    return Sweeper(Settings(**({"redis_url": server.url, "queue_url": server.url} | settings)), threading.Event())


@on_one_server
def test_users_of_a_server_that_was_restored_get_lease_and_retention_as_well(server: Server, redis: Redis) -> None:
    mine = sweeper(server, **LEASED)
    mine.sweep()
    Store(redis, Settings()).apply([ONLINE])  # as a backup from before leases has it
    mine.sweep()
    assert not redis.zcard("presence-leases")
    redis.hset("presence-sweep", "walked", "another run of the server")
    mine.sweep()
    assert redis.zscore("presence-leases", "u")


@on_one_server
@pytest.mark.parametrize(
    ("before", "now", "cause"),
    [
        ({}, {}, ""),
        ({}, LEASED, "lease or retention has changed"),
        (LEASED, {}, "lease or retention has changed"),
        (LEASED, LEASED, "presence's Redis was restarted or replaced"),
    ],
)
def test_a_start_of_redis_is_worth_a_line_only_if_users_have_leases_or_get_them(
    server: Server,
    redis: Redis,
    caplog: pytest.LogCaptureFixture,
    before: dict[str, int],
    now: dict[str, int],
    cause: str,
) -> None:
    sweeper(server, **before).sweep()
    redis.hset("presence-sweep", "walked", "another run of the server")
    redis.delete("presence-sweeper")
    caplog.clear()
    with caplog.at_level(logging.INFO):
        sweeper(server, **now).sweep()
    assert redis.hget("presence-sweep", "walked") != b"another run of the server"
    assert [record.message.partition(":")[0] for record in caplog.records] == (
        [cause, "all users have the lease and the retention that are set now"] if cause else []
    )


@on_one_server
def test_the_leases_go_when_there_are_none_any_more(server: Server, redis: Redis) -> None:
    Store(redis, Settings(**LEASED)).apply([ONLINE])
    assert redis.zcard("presence-leases") == 1
    sweeper(server).sweep()
    assert not redis.exists("presence-leases")


def test_without_permission_for_info_the_sweep_does_what_it_can_and_says_so(
    server: Server, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    redis.execute_command("ACL", "SETUSER", "no-info", "on", ">secret", "~*", "+@all", "-info")
    Store(redis, Settings()).apply([ONLINE])
    mine = sweeper(server, redis_url=server.url.replace("//", "//no-info:secret@"), **LEASED)
    for _ in range(2):
        mine.sweep()
    assert b"INFO is forbidden" in (redis.hget("presence-sweep", "held") or b"")
    assert redis.zscore("presence-leases", "u"), "users get their leases"
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == [
        "presence's Redis forbids INFO: no lease runs out, and what it forgets is not applied again"
    ]
    redis.acl_deluser("no-info")


@pytest.mark.parametrize(("settings", "lines"), [({}, 0), (LEASED, 1)], ids=["leases off", "leases on"])
@on_one_server
def test_that_a_server_is_away_is_said_where_leases_wait_for_it(
    server: Server,
    settings: dict[str, int],
    lines: int,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine = sweeper(server, redis_url=f"redis://127.0.0.1:{free_port()}", **settings)
    tries, sweep = [0], mine.sweep
    monkeypatch.setattr(mine, "sweep", counting(sweep, tries))
    monkeypatch.setattr(mine, "_pause", 0.01)
    mine.start()
    wait_until(lambda: tries[0] > 3, what="several sweeps")
    mine._stopping.set()
    mine.join()
    assert sum("no sweep: " in record.message for record in caplog.records) == lines


def counting(function: Callable[[], int], count: list[int]) -> Callable[[], int]:
    def counted() -> int:
        count[0] += 1
        return function()

    return counted
