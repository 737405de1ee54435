"""Sessions that are not renewed in time: what the server does with them, and the workers."""

import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from redis import Redis
from support import Process, Receiver, Server, Worker, on_one_server, wait_until

from shared.events import Event
from shared.settings import Settings
from worker.store.store import Outcome, Store

ON, OFF = "callbackAfterUserOnlineCommand", "callbackAfterUserOfflineCommand"
Keep = Callable[[Process], Process]

#: Ten seconds; these tests set the clock themselves.
LEASED = Settings(online_lease_seconds=10)


def event(command: str, seq: int, platform_id: int = 1, conn_id: str = "", user: str = "u", at: int = 0) -> Event:
    return Event(user, command, seq, conn_id, platform_id, "", "", at or seq)  # type: ignore[arg-type]


@pytest.fixture
def store(redis: Redis) -> Store:
    return Store(redis, LEASED)


def apply(store: Store, *events: Event) -> list[str]:
    return [result.name for result in store.apply(events) if isinstance(result, Outcome)]


def sweep(store: Store, until: int) -> int:
    due = store.due(until, 1000)
    return store.review(list(due), until, until, due) if due else 0


def user(redis: Redis, name: str = "u") -> dict[str, str]:
    return {key.decode(): value.decode() for key, value in redis.hgetall(f"presence:{name}").items()}


def changes(redis: Redis) -> list[dict[str, str]]:
    return [{k.decode(): v.decode() for k, v in fields.items()} for _, fields in redis.xrange("presence-changes")]


def leases(redis: Redis) -> dict[bytes, float]:
    return dict(redis.zrange("presence-leases", 0, -1, withscores=True))


def test_a_session_that_is_not_renewed_is_closed_and_the_change_says_why(store: Store, redis: Redis) -> None:
    apply(store, event(ON, 5, platform_id=2, at=1000))
    assert leases(redis) == {b"u": 11_000}
    assert sweep(store, 10_999) == 0
    assert sweep(store, 11_000) == 1
    assert (user(redis)["status"], user(redis)["sessions"], user(redis)["changed_at"]) == ("offline", "0", "11000")
    assert (user(redis)["seq"], user(redis)["command"], user(redis)["updated_at"]) == ("5", ON, "1000")
    assert changes(redis)[1:] == [
        {
            "user_id": "u",
            "status": "offline",
            "previous": "online",
            "seq": "5",
            "changed_at": "11000",
            "command": "lease_expired",
            "conn_id": "",
            "platform_id": "2",
            "operation_id": "",
        }
    ]
    assert leases(redis) == {}
    assert sweep(store, 99_000) == 0
    assert redis.hmget("presence-stats", "changes", "expired", "users_online") == [b"2", b"1", b"0"]


def test_a_hash_of_another_program_is_closed_at_a_time(store: Store, redis: Redis) -> None:
    redis.hset("presence:u", mapping={"status": "here", "seq": "5"})
    now = time.time_ns() // 1_000_000
    assert store.review(["u"], 0, 1) == 0
    (change,) = changes(redis)
    assert (change["status"], change["command"]) == ("offline", "lease_expired")
    assert change["changed_at"] == user(redis)["changed_at"]
    assert abs(int(change["changed_at"]) - now) < 60_000


def test_a_renewal_lengthens_the_lease_and_changes_nothing_else(store: Store, redis: Redis) -> None:
    apply(store, event(ON, 5, at=1000), event(ON, 6, at=8000))
    assert leases(redis) == {b"u": 18_000}
    assert sweep(store, 17_999) == 0
    assert (user(redis)["status"], user(redis)["changed_at"], len(changes(redis))) == ("online", "1000", 1)


def test_the_users_lease_is_that_of_the_session_that_ends_first(store: Store, redis: Redis) -> None:
    apply(store, event(ON, 5, 1, at=1000), event(ON, 6, 2, at=4000), event(ON, 7, 0, "c", at=3000))
    assert leases(redis) == {b"u": 11_000}
    assert sweep(store, 11_000) == 1
    assert (user(redis)["status"], user(redis)["sessions"]) == ("online", "2")
    assert leases(redis) == {b"u": 13_000}
    assert sweep(store, 20_000) == 2
    assert [change["command"] for change in changes(redis)] == [ON, "lease_expired"]
    assert changes(redis)[1]["changed_at"] == "14000"


def test_an_expired_session_comes_back_with_a_newer_event_only(store: Store, redis: Redis) -> None:
    old = event(ON, 5, at=1000)
    apply(store, old)
    sweep(store, 11_000)
    assert apply(store, old, event(ON, 4, at=1100)) == ["duplicate", "stale"]
    assert user(redis)["status"] == "offline"
    assert apply(store, event(ON, 6, at=12_000)) == ["applied"]
    assert (user(redis)["status"], leases(redis)) == ("online", {b"u": 22_000})


def test_an_offline_event_ends_the_lease(store: Store, redis: Redis) -> None:
    apply(store, event(ON, 5, 1, at=1000), event(ON, 6, 2, at=2000), event(OFF, 7, 1))
    assert leases(redis) == {b"u": 12_000}
    apply(store, event(OFF, 8, 2))
    assert leases(redis) == {}


def test_without_leases_nothing_is_kept_of_them(redis: Redis) -> None:
    apply(Store(redis, Settings()), event(ON, 5, at=1000))
    assert leases(redis) == {}
    assert user(redis)["p:1"] == "5 - 1"


def test_sessions_from_before_leases_get_one_when_they_are_switched_on(store: Store, redis: Redis) -> None:
    apply(Store(redis, Settings()), event(ON, 5, at=1000), event(OFF, 5, user="gone"))
    assert sorted(store.user_ids()) == ["gone", "u"]
    assert store.review(["u", "gone", "never"], 0, 50_000) == 0
    assert leases(redis) == {b"u": 60_000}
    assert sweep(store, 60_000) == 1
    assert user(redis)["status"] == "offline"


def test_a_user_whose_key_is_broken_holds_up_no_other(store: Store, redis: Redis) -> None:
    apply(store, event(ON, 5, user="bad", at=1000), event(ON, 5, user="good", at=1000))
    redis.delete("presence:bad")
    redis.set("presence:bad", "no hash")
    assert sweep(store, 11_000) == 1
    assert leases(redis) == {}


def test_the_offline_are_forgotten_and_the_online_never(redis: Redis) -> None:
    store, now = Store(redis, Settings(retention_seconds=100)), time.time_ns() // 1_000_000
    apply(store, event(OFF, 5, at=now))
    assert 95 <= redis.ttl("presence:u") <= 100
    apply(store, event(ON, 6, at=now))
    assert redis.ttl("presence:u") == -1
    apply(store, event(OFF, 7, at=now))
    assert 95 <= redis.ttl("presence:u") <= 100
    apply(Store(redis, Settings()), event(ON, 8, at=now))
    assert redis.ttl("presence:u") == -1, "although retention was switched off meanwhile"


def test_a_new_retention_reaches_users_that_are_there(redis: Redis) -> None:
    apply(Store(redis, Settings()), event(OFF, 5), event(ON, 5, user="v"))
    Store(redis, Settings(retention_seconds=100)).review(["u", "v"], 0, 1)
    assert 95 <= redis.ttl("presence:u") <= 100
    assert redis.ttl("presence:v") == -1
    Store(redis, Settings()).review(["u", "v"], 0, 1)
    assert redis.ttl("presence:u") == -1


# With real programs, and leases of two seconds

BODY = '{"userID":"%s","callbackCommand":"%s","seq":%d,"platformID":1,"platform":"IOS","operationID":"op"}'
HEADERS = {"Content-Type": "application/json"}


def post(receiver: Receiver, user_id: str, command: str = ON) -> None:
    body = BODY % (user_id, command, time.time_ns() // 1_000_000)
    assert receiver.post(f"/callbackExample/{command}", HEADERS, body.encode())[0] == 200


def status(redis: Redis, user_id: str) -> bytes | None:
    return redis.hget(f"presence:{user_id}", "status")


@on_one_server
def test_who_is_renewed_stays_online_and_who_is_not_does_not(
    server: Server, redis: Redis, tmp_path: Path, keep: Keep
) -> None:
    receiver = Receiver(tmp_path, server.url)
    keep(receiver)
    workers = [keep(Worker(tmp_path, server.url, f"worker{n}", ONLINE_LEASE_SECONDS="2")) for n in range(2)]
    post(receiver, "ghost")
    wait_until(lambda: status(redis, "ghost") == b"online")

    def ghost_is_gone() -> bool:
        post(receiver, "here")
        time.sleep(0.2)
        return status(redis, "ghost") == b"offline"

    wait_until(ghost_is_gone)
    assert changes(redis)[-1]["command"] == "lease_expired"
    workers[0].kill()  # if this one had the turn, the other has it soon
    post(receiver, "ghost")
    wait_until(ghost_is_gone)
    assert [c["status"] for c in changes(redis) if c["user_id"] == "ghost"] == ["online", "offline"] * 2
    assert [c["status"] for c in changes(redis) if c["user_id"] == "here"] == ["online"]


@on_one_server
def test_what_is_no_report_of_a_receiver_stops_the_sweep_with_one_line(
    server: Server, redis: Redis, tmp_path: Path, keep: Keep
) -> None:
    redis.hset("presence-receivers", "junk", "no report")
    worker = Worker(tmp_path, server.url, ONLINE_LEASE_SECONDS="2")
    keep(worker)
    wait_until(lambda: "no sweep: the field junk of presence-receivers is not a receiver's report" in worker.text())
    redis.hdel("presence-receivers", "junk")
    wait_until(lambda: redis.hexists("presence-sweep", "held"), what="a sweep")
    assert "Traceback" not in worker.text()
    assert worker.text().count("no sweep") == 1


def test_an_outage_of_ours_is_not_silence_of_theirs(tmp_path: Path, keep: Keep) -> None:
    with ThreadPoolExecutor() as pool:  # each on a system of its own, at the same time
        results = [pool.submit(freeze, name, tmp_path / name, keep) for name in ("worker", "receiver", "server")]
    for result in results:
        result.result()


def freeze(which: str, directory: Path, keep: Keep) -> None:
    server = Server(directory / "server")
    receiver = Receiver(directory, server.url)
    worker = Worker(directory, server.url, ONLINE_LEASE_SECONDS="2")
    programs = {"server": server, "receiver": receiver, "worker": worker}
    for each in programs.values():
        keep(each)

    def is_swept_again() -> bool:
        post(receiver, "u")  # OpenIM is there all the time
        time.sleep(0.2)
        return server.client.hget("presence-sweep", "held") == b""

    wait_until(is_swept_again)
    programs[which].signal(signal.SIGSTOP)
    time.sleep(4)  # two leases: the length of the outage is what is tested
    programs[which].signal(signal.SIGCONT)
    wait_until(lambda: server.client.hget("presence-sweep", "held") not in (b"", None))
    wait_until(is_swept_again)
    assert [change["command"] for change in changes(server.client)] == [ON], which
