"""What the programs say about servers that are not as they should be."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support import Process, Receiver, Server, Worker, free_port, wait_until

Keep = Callable[[Process], Process]
WARNING = "set maxmemory-policy noeviction, not allkeys-lru"


def test_a_queue_that_may_be_evicted_is_warned_of_once(tmp_path: Path, keep: Keep) -> None:
    server = Server(tmp_path / "server", maxmemory_policy="allkeys-lru")
    keep(server)
    worker = Worker(tmp_path, server.url)
    receiver = Receiver(tmp_path, server.url)
    for program in (worker, receiver):
        keep(program)
        wait_until(lambda program=program: WARNING in program.text(), what="the warning")  # type: ignore[misc]
        server.client.client_kill_filter(_type="normal")  # they connect again
    wait_until(lambda: server.client.hlen("presence-receivers"), what="the receiver to be back")
    for program in (worker, receiver):
        assert program.text().count(WARNING) == 1
        assert "PRESENCE_REDIS_URL: the server may evict" in program.text()


def test_a_presence_server_that_may_evict_is_warned_of_as_well(server: Server, tmp_path: Path, keep: Keep) -> None:
    presence = Server(tmp_path / "presence", maxmemory_policy="volatile-ttl")
    keep(presence)
    worker = Worker(tmp_path, presence.url, queue_url=server.url)
    keep(worker)
    wait_until(lambda: "PRESENCE_REDIS_URL: the server may evict" in worker.text(), what="the warning")
    assert "PRESENCE_QUEUE_URL:" not in worker.text()


@pytest.mark.parametrize(
    ("variable", "scheme", "cluster_enabled", "says"),
    [
        ("PRESENCE_REDIS_URL", "redis", "yes", "this server is part of a Redis Cluster: write redis+cluster://"),
        ("PRESENCE_QUEUE_URL", "redis", "yes", "this server is part of a Redis Cluster: write redis+cluster://"),
        ("PRESENCE_REDIS_URL", "redis+cluster", "no", "this is not a Redis Cluster"),
    ],
)
def test_a_worker_stops_where_the_servers_are_not_what_the_url_says(
    server: Server, tmp_path: Path, keep: Keep, variable: str, scheme: str, cluster_enabled: str, says: str
) -> None:
    other = Server(tmp_path / "other", cluster_enabled=cluster_enabled, cluster_port=str(free_port()))
    keep(other)
    settings = {"PRESENCE_REDIS_URL": server.url, "PRESENCE_QUEUE_URL": server.url}
    settings[variable] = f"{scheme}://127.0.0.1:{other.port}"
    worker = Worker(tmp_path, settings["PRESENCE_REDIS_URL"], queue_url=settings["PRESENCE_QUEUE_URL"])
    keep(worker)
    assert worker.popen.wait(20) == 1
    assert worker.text().splitlines()[-1].startswith(f"worker: {variable}: {says}")


def test_a_receiver_accepts_where_the_queue_cannot_live_and_says_so(tmp_path: Path, keep: Keep) -> None:
    other = Server(tmp_path / "other", cluster_enabled="yes", cluster_port=str(free_port()))
    receiver = Receiver(tmp_path, other.url)
    for process in (other, receiver):
        keep(process)
    says = "PRESENCE_REDIS_URL: this server is part of a Redis Cluster"
    wait_until(lambda: says in receiver.text(), what="the line in the log")
    assert receiver.popen.poll() is None
