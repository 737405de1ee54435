"""A failover behind an address that stays: new connections lead to the new primary, old ones stay with the old one."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import ReadOnlyError
from support import Process, Receiver, Server, Worker, wait_until
from topology import Endpoint, Flips

from shared.errors import Unavailable
from shared.events import Event
from shared.redis.client import connect
from shared.settings import Settings
from worker.store.store import Outcome, Store

Keep = Callable[[Process], Process]


class Pair:
    """Two servers behind one address, which leads to the first until `fail_over`."""

    def __init__(self, directory: Path, binary: Path) -> None:
        self.old = Server(directory / "old", binary, repl_diskless_sync_delay="0")
        primary = ("127.0.0.1", str(self.old.port))
        self.new = Server(directory / "new", binary, repl_diskless_sync_delay="0", replicaof=primary)
        wait_until(lambda: self.old.client.wait(1, 100), what="the replica")
        self.endpoint = Endpoint(self.old.port)
        self.url = f"redis://127.0.0.1:{self.endpoint.port}/0"

    def fail_over(self) -> None:
        self.new.client.replicaof("NO", "ONE")
        self.old.client.replicaof("127.0.0.1", str(self.new.port))
        self.endpoint.leads_to = self.new.port


@pytest.fixture
def pair(shared_server: Server, tmp_path: Path, keep: Keep) -> Iterator[Pair]:
    pair = Pair(tmp_path, Path(shared_server.command[0]))
    keep(pair.old)
    keep(pair.new)
    yield pair
    pair.endpoint.close()


@pytest.mark.parametrize(
    "ask", [lambda client: client.set("key", 1), lambda client: client.pipeline().set("key", 1).execute()]
)
def test_a_client_goes_where_the_address_leads_by_then(pair: Pair, ask: Callable[[Redis], object]) -> None:
    with connect(pair.url) as client:
        ask(client)
        pair.fail_over()
        with pytest.raises(ReadOnlyError):
            ask(client)
        ask(client)
    assert pair.new.client.get("key") == b"1"


def test_events_for_a_replica_wait_and_are_not_set_apart(pair: Pair) -> None:
    store = Store(connect(pair.url), Settings())
    event = Event("u", "callbackAfterUserOnlineCommand", 5, "", 1, "", "", 1000)
    assert store.apply([event]) == [Outcome("applied", True)]
    pair.fail_over()
    with pytest.raises(Unavailable):
        store.apply([event])
    assert store.apply([event]) in ([Outcome("applied", True)], [Outcome("duplicate")])


def test_receiver_worker_and_sweeper_go_over_to_the_new_primary(pair: Pair, tmp_path: Path, keep: Keep) -> None:
    receiver = Receiver(tmp_path, pair.url, online_lease_seconds="1000")
    worker = Worker(tmp_path, pair.url, online_lease_seconds="1000")
    keep(receiver)
    keep(worker)
    flips = Flips(receiver)
    flips.go_on(0.3)
    wait_until(lambda: pair.old.client.hget("presence-sweep", "settings") == b"1000/0", what="the sweep")
    pair.fail_over()
    pair.new.client.hdel("presence-sweep", "settings")
    flips.go_on(0.3)
    flips.stop()
    wait_until(lambda: not flips.not_applied(pair.new.client), 30, "all events on the new primary")
    wait_until(lambda: pair.new.client.hget("presence-sweep", "settings") == b"1000/0", what="the sweep to go on")
    wait_until(lambda: receiver.readiness()[1]["redis"] == "up", what="the receiver to say so")
    assert "Traceback" not in receiver.text() + worker.text()
