"""Presence on a Redis Cluster of three primaries with a replica each; the queue on a Redis of its own."""

import json
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openim
import pytest
import recipes
from click.testing import CliRunner
from redis import Redis, RedisCluster
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import ConnectionError, ResponseError
from redis.retry import Retry
from support import Process, Receiver, Server, Worker, free_port, wait_until
from topology import SECRET, ClusterServers, Flips, changes, command

import openim_presence as presence
from shared.cli import cli
from shared.errors import Unavailable
from shared.events import EVENTS, Event
from shared.queue import open_queue
from shared.redis.client import connect, is_outage
from shared.redis.cluster import Cluster
from shared.settings import Settings, load
from worker.store.outbox import Outbox
from worker.store.store import Outcome, Poison, Store
from worker.sweep.sweeper import Sweeper

pytestmark = pytest.mark.xdist_group("cluster")  # they share what takes long to start
Keep = Callable[[Process], Process]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterServers]:
    servers = ClusterServers(tmp_path_factory.mktemp("cluster"))
    yield servers
    servers.kill()


@pytest.fixture
def cluster(servers: ClusterServers) -> Iterator[Redis]:
    """Emptied, for each test."""
    with connect(servers.url) as client:
        client.flushall()
        yield client


@pytest.fixture
def store(servers: ClusterServers, cluster: Redis) -> Store:
    return Store(cluster, settings_of(servers))


def settings_of(servers: ClusterServers, **others: str) -> Settings:
    named = {"REDIS_URL": servers.url, "QUEUE_URL": "redis://127.0.0.1"} | others
    return load({f"PRESENCE_{name}": value for name, value in named.items()})


def event(user: str, kind: str, seq: int) -> Event:
    return Event(user, f"callbackUser{kind}Command", seq, "", 1, "IOS", f"op{seq}", 1000 + seq)  # type: ignore[arg-type]


def test_why_finds_what_is_spread_over_the_nodes(store: Store, servers: ClusterServers, server: Server) -> None:
    for user in ("alice", "bob", "carol"):
        store.apply([event(user, "Online", 1), event(user, "Offline", 2)])
        store.apply([event(user, "Offline", 1)])
        environment = {"PRESENCE_REDIS_URL": servers.url, "PRESENCE_QUEUE_URL": server.url}
        result = CliRunner().invoke(cli, ["why", user, "--json"], env=environment)
        said = json.loads(result.stdout)
        assert (said["status"], said["troubles"]) == ("offline", [])
        assert [each["user_id"] for each in said["changes"]] == [user]
        assert [each["outcome"] for each in said["ignored"]] == ["stale"]


def test_users_are_compared_with_openim_wherever_they_live(
    store: Store, servers: ClusterServers, server: Server
) -> None:
    users = [f"user{number}" for number in range(300)]
    store.apply([event(user, "Online", 1) for user in users])
    with openim.serving(7) as im:
        im.users = ["new"]
        im.im.open("new", 5)
        for user in users[:200]:
            im.im.open(user, 1)
        environment = {
            "PRESENCE_REDIS_URL": servers.url,
            "PRESENCE_QUEUE_URL": server.url,
            "PRESENCE_OPENIM_API": im.url,
            "PRESENCE_OPENIM_SECRET": openim.SECRET,
        }
        result = CliRunner().invoke(cli, ["reconcile", "--all", "--json", "--force"], env=environment)
    *found, last = map(json.loads, result.stdout.splitlines())
    assert (last["compared"], last["ghost"], last["missing"]) == (301, 100, 1)
    assert {each["user_id"] for each in found} == {*users[200:], "new"}
    jobs = open_queue(server.client, settings_of(servers)).jobs
    assert [result for job in jobs for result in store.apply(EVENTS.validate_python(job.args[0]))] == [
        Outcome("applied", True)
    ] * 101


def test_events_are_applied_wherever_their_users_live(store: Store, cluster: Redis) -> None:
    users = [f"user{number}" for number in range(300)]
    assert store.apply([event(user, "Online", 1) for user in users]) == [Outcome("applied", True)] * 300
    assert store.apply([event(users[0], "Online", 1)]) == [Outcome("duplicate")]
    assert {user.status for user in presence.read(cluster, users)} == {"online"}
    assert {user.user_id for user in presence.read_all(cluster)} == set(users)
    assert presence.users_online(cluster) == 300
    assert {user: len(entries) for user, entries in changes(cluster).items()} == dict.fromkeys(users, 1)
    assert not any(cluster.hexists(f"presence:{user}", "outbox") for user in users)


def test_a_change_that_a_dead_worker_left_behind_is_sent_by_the_next(store: Store, cluster: Redis) -> None:
    store.apply([event("alice", "Online", 1)])
    entry = {"user_id": "alice", "status": "offline", "previous": "online", "seq": "2", "changed_at": "1002"}
    left = json.dumps([word for field in entry.items() for word in field])
    cluster.hset("presence:alice", mapping={"outbox": left, "status": "offline"})
    store.apply([event("alice", "Online", 3)])
    assert changes(cluster)["alice"] == [("online", "", 1), ("offline", "online", 2), ("online", "offline", 3)]


def test_leases_run_out_and_are_renewed(servers: ClusterServers, cluster: Redis) -> None:
    store = Store(cluster, settings_of(servers, ONLINE_LEASE_SECONDS="10"))
    store.apply([event("alice", "Online", 1), event("bob", "Online", 1)])  # received at 1001
    store.apply([event("bob", "Online", 4000)])
    due = store.due(11_001, 10)
    assert due == {"alice": 11_001, "bob": 11_001}  # of bob's renewal the sweep finds out
    assert store.review(list(due), 11_001, 11_001, due) == 1
    assert changes(cluster)["alice"] == [("online", "", 1), ("offline", "online", 1)]
    assert [user.status for user in presence.read(cluster, ["alice", "bob"])] == ["offline", "online"]
    assert cluster.zrange("presence-leases", 0, -1, withscores=True) == [(b"bob", 15_000)]
    assert presence.users_online(cluster) == 1


def test_the_leases_go_when_there_are_none_any_more(
    servers: ClusterServers, cluster: Redis, tmp_path: Path, keep: Keep
) -> None:
    queue = Server(tmp_path / "queue")
    keep(queue)
    Store(cluster, settings_of(servers, ONLINE_LEASE_SECONDS="10")).apply([event("alice", "Online", 1)])
    assert cluster.zcard("presence-leases") == 1
    Sweeper(settings_of(servers, QUEUE_URL=queue.url), threading.Event()).sweep()
    assert not cluster.exists("presence-leases")


def test_a_session_opened_while_the_sweep_is_at_its_user_keeps_its_lease(
    servers: ClusterServers, cluster: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(cluster, settings_of(servers, ONLINE_LEASE_SECONDS="10"))
    store.apply([event("alice", "Online", 1)])
    reschedule = Outbox.reschedule

    def late(*arguments: Any) -> None:
        store.apply([event("alice", "Online", 4000)])
        reschedule(*arguments)

    monkeypatch.setattr(Outbox, "reschedule", late)
    due = store.due(11_001, 10)
    assert store.review(list(due), 11_001, 11_001, due) == 1
    assert [user.status for user in presence.read(cluster, ["alice"])] == ["online"]
    assert cluster.zrange("presence-leases", 0, -1, withscores=True) == [(b"alice", 15_000)]


def test_a_primary_that_does_not_know_the_functions_gets_them(
    servers: ClusterServers, store: Store, cluster: Redis
) -> None:
    users = [f"user{number}" for number in range(30)]
    store.apply([event(user, "Online", 1) for user in users])
    servers.primaries[1].client.function_flush()
    assert set(store.apply([event(user, "Offline", 2) for user in users])) <= {
        Outcome("applied", True),
        Outcome("duplicate"),  # if the server knew the function, the first try had applied it
    }
    assert {user.status for user in presence.read(cluster, users)} == {"offline"}


def test_a_slot_on_the_move_is_followed(servers: ClusterServers, store: Store, cluster: Redis) -> None:
    slot = key_slot(b"presence:{moving}1")
    source = next(node for node in servers.primaries if owns(node, slot))
    target = next(node for node in servers.primaries if node is not source)
    names = {node: command(node, "MYID").decode() for node in (source, target)}
    store.apply([event("{moving}0", "Online", 1), event("elsewhere", "Online", 1)])
    command(target, "SETSLOT", slot, "IMPORTING", names[source])
    command(source, "SETSLOT", slot, "MIGRATING", names[target])
    # Half-way: the target is asked about users whom the source does not have.
    store.apply([event("{moving}1", "Online", 1), event("elsewhere", "Offline", 2)])
    assert target.client.execute_command("CLUSTER COUNTKEYSINSLOT", slot) == 1
    source.client.migrate("127.0.0.1", target.port, "presence:{moving}0", 0, 5000, auth=SECRET)
    for node in (target, source):
        command(node, "SETSLOT", slot, "NODE", names[target])
    store.apply([event(f"{{moving}}{number}", "Offline", 2) for number in range(3)])
    found = presence.read(cluster, ["{moving}0", "{moving}1", "{moving}2", "elsewhere"])
    assert [user.status for user in found] == ["offline"] * 4


def test_the_first_slot_on_its_way_to_a_new_primary_is_followed(
    servers: ClusterServers, store: Store, cluster: Redis, tmp_path: Path, keep: Keep
) -> None:
    slot = key_slot(b"presence:{growing}0")
    source = next(node for node in servers.primaries if owns(node, slot))
    target = servers.add(tmp_path / "new")
    keep(target)
    names = {node: command(node, "MYID").decode() for node in (source, target)}
    store.apply([event("{growing}0", "Online", 1)])
    command(target, "SETSLOT", slot, "IMPORTING", names[source])
    command(source, "SETSLOT", slot, "MIGRATING", names[target])
    try:
        users = ["{growing}0", "{growing}1", *(f"elsewhere{number}" for number in range(20))]
        assert not any(isinstance(each, Poison) for each in store.apply([event(user, "Online", 2) for user in users]))
        assert [user.status for user in presence.read(cluster, users)] == ["online"] * len(users)
        assert cluster.hget("presence:{growing}1", "seq") == b"2"
        assert target.client.execute_command("CLUSTER COUNTKEYSINSLOT", slot) == 1
    finally:
        command(source, "SETSLOT", slot, "STABLE")
        for node in servers.nodes:
            command(node, "FORGET", names[target])


def test_what_redis_py_raises_that_is_no_answer_is_an_outage(cluster: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.ping()
    monkeypatch.setattr(RedisCluster, "execute_command", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(RedisCluster, "get_node_from_key", lambda *_, **__: None.anything)  # type: ignore[attr-defined]
    for ask in (lambda: cluster.get("a"), lambda: cluster.pipeline().get("a").execute()):
        with pytest.raises(ConnectionError, match=r"redis-py failed: (ZeroDivision|Attribute)Error") as caught:
            ask()
        assert is_outage(caught.value)


def owns(node: Server, slot: int) -> bool:
    name = command(node, "MYID")
    return any(name == owner[2] and first <= slot <= last for first, last, owner, *_ in command(node, "SLOTS"))


@pytest.mark.parametrize("key", ["presence-leases", "presence-stats"])
def test_a_key_of_a_wrong_type_beside_the_users_holds_up_nobody(
    servers: ClusterServers, cluster: Redis, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(cluster, settings_of(servers, ONLINE_LEASE_SECONDS="10"))
    cluster.set(key, "in the way")
    assert store.apply([event("alice", "Online", 1)]) == [Outcome("applied", True)]
    assert changes(cluster)["alice"] == [("online", "", 1)]
    assert f"{key} cannot be" in caplog.text
    cluster.delete(key)


def test_one_lost_primary_keeps_nobody_elses_changes_from_the_stream(servers: ClusterServers, cluster: Redis) -> None:
    with connect(servers.url, timeout=0.3) as hasty:
        store = Store(hasty, settings_of(servers))
        store.apply([event("anybody", "Online", 1)])
        frozen = next(node for node in servers.primaries if not owns(node, key_slot(b"presence-changes")))
        users = [f"user{number}" for number in range(50)]
        elsewhere = [user for user in users if not owns(frozen, key_slot(f"presence:{user}".encode()))]
        frozen.signal(signal.SIGSTOP)
        try:
            with pytest.raises(Unavailable):
                store.apply([event(user, "Online", 1) for user in users])
            assert changes(cluster).keys() == {"anybody", *elsewhere}
        finally:
            frozen.signal(signal.SIGCONT)
    servers.wait(servers.nodes)


def test_errors_are_redis_pys_own_and_come_without_a_wait(servers: ClusterServers, cluster: Redis) -> None:
    pipeline = cluster.pipeline(transaction=False)
    pipeline.set("a", "text").hget("a", "field")
    ok, error = pipeline.execute(raise_on_error=False)
    assert ok and isinstance(error, ResponseError) and not is_outage(error)
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        cluster.hget("a", "field")
    nobody = connect("redis+cluster://127.0.0.1:1")
    started_at = time.monotonic()
    for ask in (
        lambda: nobody.get("a"),
        lambda: nobody.pipeline().get("a").execute(),
        lambda: list(nobody.scan_iter()),
    ):
        with pytest.raises(ConnectionError) as caught:
            ask()
        assert is_outage(caught.value)
    assert time.monotonic() - started_at < 1


def test_users_need_no_more_rights_than_the_page_says(
    servers: ClusterServers, cluster: Redis, tmp_path: Path, keep: Keep
) -> None:
    queue = Server(tmp_path / "queue")
    keep(queue)
    user = "presence-cluster"
    # Workers use no transactions on a Cluster.
    without = [right for right in rights("presence-worker")[3:] if right != "+@transaction"]
    assert rights(user)[3:] == [*without, "+cluster|slots"]
    try:
        for name, server in (("presence-queue", queue), *((user, node) for node in servers.nodes)):
            server.client.execute_command(*rights(name))
        where = f"redis+cluster://{user}:secret@127.0.0.1:{servers.nodes[0].port}"
        settings = {
            "queue_url": f"redis://presence-queue:secret@127.0.0.1:{queue.port}",
            "online_lease_seconds": "1000",
            "retention_seconds": "1000",
        }
        receiver, worker = Receiver(tmp_path, where, **settings), Worker(tmp_path, where, **settings)
        for process in (receiver, worker):
            keep(process)
        flips = Flips(receiver)
        flips.go_on(0.5)
        flips.stop()
        wait_until(lambda: not flips.not_applied(cluster), what="the events")
        wait_until(lambda: queue.client.hget("presence-sweep", "settings") == b"1000/1000", what="the sweep")
        for process in (receiver, worker):
            assert "permission" not in process.text() and "WARNING" not in process.text(), process.text()
    finally:
        for node in servers.nodes:
            node.client.acl_deluser(user)


def rights(user: str) -> list[str]:
    """The ACL rules that docs/redis-servers.md gives to a user."""
    lines = recipes.text("users.sh").splitlines()
    (line,) = (each for each in lines if f"SETUSER {user} " in each)
    return shlex.split(line)[1:]


def test_nothing_accepted_is_lost_when_a_primary_is_killed(
    servers: ClusterServers, cluster: Redis, tmp_path: Path, keep: Keep
) -> None:
    queue = Server(tmp_path / "queue")
    keep(queue)
    receiver = Receiver(tmp_path, servers.url, queue_url=queue.url)
    keep(receiver)
    for name in ("worker1", "worker2"):
        keep(Worker(tmp_path, servers.url, name, queue_url=queue.url))
    flips = Flips(receiver)
    flips.go_on(0.7)
    # The one that has the stream, and a third of the users besides.
    primary = next(node for node in servers.primaries if owns(node, key_slot(b"presence-changes")))
    replica = servers.replicas[servers.primaries.index(primary)]
    primary.kill()
    killed_at, before = time.monotonic(), flips.accepted
    wait_until(lambda: replica.client.execute_command("ROLE")[0] == b"master", what="the replica to be promoted")
    promoted_after = time.monotonic() - killed_at
    flips.go_on(0.7)
    flips.stop()
    wait_until(lambda: not flips.not_applied(cluster), 30, "all events to be applied")
    wait_until(lambda: chains_end_at(cluster, flips), what="all changes to be on the stream")
    repeats = sum(len(entries) - len(set(entries)) for entries in changes(cluster).values())
    print(
        f"promoted after {promoted_after:.1f} s, accepted {before} before, {flips.accepted} in all; {repeats} repeats"
    )


def chains_end_at(cluster: Any, flips: Flips) -> bool:
    """Each user's changes are a chain, apart from repeats, and end with the last event that was accepted."""
    found = changes(cluster)
    for user, (_, status) in flips.last.items():
        entries = list(dict.fromkeys(found[user]))  # some may come again
        statuses = ["", *(each for each, _, _ in entries)]
        assert [previous for _, previous, _ in entries] == statuses[:-1], (user, found[user])
        if statuses[-1] != status:
            return False
    return True


def test_a_cluster_that_was_away_as_a_whole_is_looked_for_where_the_url_says(tmp_path: Path, keep: Keep) -> None:
    node = Server(tmp_path, cluster_enabled="yes", cluster_port=str(free_port()))
    keep(node)
    command(node, "ADDSLOTSRANGE", 0, 16383)
    looked_for: list[int] = []

    def look_for_it() -> RedisCluster:
        looked_for.append(node.port)
        return RedisCluster(host="127.0.0.1", port=node.port, retry=Retry(NoBackoff(), 0))

    with Cluster(look_for_it) as client:
        assert client.ping() and client.ping()
        assert len(looked_for) == 1
        node.kill()
        for _ in range(2):
            with pytest.raises(ConnectionError):
                client.ping()
        node.restart()
        assert client.ping()
        assert len(looked_for) == 3
