"""Several servers at once: a Redis Cluster, and a primary and a replica that Sentinels watch."""

import http.client
import itertools
import socket
import threading
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import RedisError
from support import Process, Receiver, Server, free_port, wait_until

import openim_presence as presence
from shared.cli import embedded
from shared.cli.openim import request
from shared.redis.client import connect

SLOTS = 16384
#: How long a server may be silent before others take it for dead.
SILENCE_MS = "1000"
#: There are passwords, so that every connection shows that it can log in; Sentinels have another one.
SECRET, SENTINEL_SECRET = "geheim", "auch-geheim"
_REPLICATED = {
    "repl_diskless_sync_delay": "0",
    "appendonly": "no",
    "requirepass": SECRET,
    "masterauth": SECRET,
}


class ClusterServers:
    """Primaries that share the slots, and one replica of each: the n-th replica is that of the n-th primary."""

    def __init__(self, directory: Path, primaries: int = 3, binary: Path | None = None) -> None:
        self.nodes: list[Server] = []
        buses = [free_port() for _ in range(2 * primaries)]
        for number, bus in enumerate(buses):
            self.nodes.append(self._node(directory / f"node{number}", bus, binary))
        self.primaries, self.replicas = self.nodes[:primaries], self.nodes[primaries:]
        self.url = f"redis+cluster://:{SECRET}@" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:2])
        for number, node in enumerate(self.primaries):
            first, last = SLOTS * number // primaries, SLOTS * (number + 1) // primaries - 1
            command(node, "ADDSLOTSRANGE", first, last)
            command(node, "SET-CONFIG-EPOCH", number + 1)
        for node, bus in zip(self.nodes[1:], buses[1:], strict=True):
            command(self.nodes[0], "MEET", "127.0.0.1", node.port, bus)
        wait_until(lambda: all(self._knows_all(node) for node in self.nodes), what="the nodes to meet")
        for primary, replica in zip(self.primaries, self.replicas, strict=True):
            command(replica, "REPLICATE", command(primary, "MYID").decode())
        self.wait(self.nodes)
        self.client = connect(self.url)

    @staticmethod
    def _node(directory: Path, bus: int, binary: Path | None) -> Server:
        options = {"cluster_enabled": "yes", "cluster_node_timeout": SILENCE_MS, "cluster_port": str(bus)}
        # A replica that has not heard of its primary for very long would refuse to follow it.
        options |= {"cluster_replica_validity_factor": "0", **_REPLICATED}
        return Server(directory, binary, **options)

    def add(self, directory: Path, binary: Path | None = None) -> Server:
        """One more primary, without slots; it is not among `nodes`."""
        bus = free_port()
        node = self._node(directory, bus, binary)
        command(self.nodes[0], "MEET", "127.0.0.1", node.port, bus)
        known = len(self.nodes) + 1
        wait_until(
            lambda: all(len(command(each, "NODES").splitlines()) == known for each in [*self.nodes, node]),
            what="the nodes to meet",
        )
        wait_until(lambda: b"cluster_state:ok" in command(node, "INFO"), what="the new node to find the cluster whole")
        return node

    def _knows_all(self, node: Server) -> bool:
        return len(command(node, "NODES").splitlines()) == len(self.nodes)

    def wait(self, nodes: list[Server]) -> None:
        """Waits until each of these nodes finds the cluster whole, and each primary among them has its replica."""
        wait_until(lambda: all(map(self._is_well, nodes)), what="the cluster to be whole")

    def _is_well(self, node: Server) -> bool:
        try:
            whole = b"cluster_state:ok" in command(node, "INFO")
            return whole and bool(node in self.replicas or node.client.wait(1, 100))
        except RedisError:
            return False

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()


def command(node: Server, *words: Any) -> Any:
    """Sends a CLUSTER command. Its reply, unparsed."""
    connection = node.client.connection_pool.get_connection()
    try:
        connection.send_command("CLUSTER", *words)
        return connection.read_response()
    finally:
        node.client.connection_pool.release(connection)


class Watched:
    """One primary, one replica, three Sentinels that watch them under the name `mymaster`."""

    SERVICE = "mymaster"

    def __init__(self, directory: Path, binary: Path | None = None, **options: str) -> None:
        self.directory = directory
        options = _REPLICATED | options
        self.primary = Server(directory / "one", binary, **options)
        self.replica = Server(directory / "two", binary, replicaof=("127.0.0.1", str(self.primary.port)), **options)
        wait_until(lambda: self.primary.client.wait(1, 100), what="the replica")
        self.sentinels = [self._sentinel(number, binary) for number in range(3)]
        self.clients = [Redis(port=sentinel.port, password=SENTINEL_SECRET) for sentinel in self.sentinels]
        for client in self.clients:
            wait_until(lambda client=client: self._debug(client, 100), what="a Sentinel")  # type: ignore[misc]
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        self.url = f"redis+sentinel://:{SECRET}@{hosts}/{self.SERVICE}/0?sentinel_password={SENTINEL_SECRET}"
        wait_until(lambda: all(map(self._sees_all, self.clients)), what="the Sentinels to find each other")
        for client in self.clients:
            self._debug(client, 2000)  # the default: an old primary may go on as one for four times that

    @staticmethod
    def _debug(client: Redis, publish_period_ms: int) -> bool:
        """Sets how often a Sentinel announces itself, and what it knows of the servers."""
        try:
            client.execute_command("SENTINEL", "DEBUG", "publish-period", publish_period_ms, "info-period", 1000)
        except RedisError:
            return False
        return True

    def _sentinel(self, number: int, binary: Path | None) -> "SentinelServer":
        return SentinelServer(self.directory / f"sentinel{number}", self.primary.port, self.SERVICE, binary)

    def _sees_all(self, client: Redis) -> bool:
        try:
            state = client.sentinel_master(self.SERVICE)
        except RedisError:
            return False
        return state["num-other-sentinels"] == 2 and state["num-slaves"] == 1

    def is_replica(self, server: Server) -> bool:
        """Whether that server says that it is a replica."""
        with suppress(RedisError):
            return bool(server.client.execute_command("ROLE")[0] == b"slave")
        return False

    def primary_port(self) -> int:
        """The port of the server that the first Sentinel takes for the primary."""
        return int(self.clients[0].sentinel_get_master_addr_by_name(self.SERVICE)[1])

    def kill(self) -> None:
        for process in (*self.sentinels, self.primary, self.replica):
            process.kill()


class SentinelServer(Process):
    """One Sentinel, which writes what it learns into its own configuration file."""

    def __init__(self, directory: Path, watched_port: int, service: str, binary: Path | None) -> None:
        self.port = free_port()
        directory.mkdir(parents=True)
        config = directory / "sentinel.conf"
        config.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {directory}\nrequirepass {SENTINEL_SECRET}\n"
            f"sentinel monitor {service} 127.0.0.1 {watched_port} 2\n"
            f"sentinel auth-pass {service} {SECRET}\n"
            f"sentinel down-after-milliseconds {service} {SILENCE_MS}\n"
            f"sentinel failover-timeout {service} 3000\n"
        )
        command = [str(binary or embedded.find_server()), str(config), "--sentinel"]
        super().__init__(command, {}, directory, "sentinel")


class Flips(threading.Thread):
    """Events over HTTP, at a steady rate, whatever becomes of the servers.

    Half of them are of a few users who go online and offline in turn, each event with a higher seq than the last. The
    other half are the only events of their users, so that none of them can be lost unnoticed.
    """

    USERS = 50
    RATE = 300  # events/s

    def __init__(self, receiver: Receiver) -> None:
        super().__init__(daemon=True)
        self._receiver = receiver
        self._stopping = threading.Event()
        self.accepted = 0
        #: The last accepted event of each user: seq and status.
        self.last: dict[str, tuple[int, str]] = {}
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._receiver.port, timeout=10)
        started_at, seq = time.monotonic(), 1_700_000_000_000
        try:
            for number in itertools.count():
                if self._stopping.wait(max(0.0, started_at + number / self.RATE - time.monotonic())):
                    return
                half = number // 2
                user = f"once{half}" if number % 2 else f"u{half % self.USERS}"
                step = ("Online", "Offline")[half // self.USERS % 2]
                callback = request("v3.8", "/x", step, user, seq + number)  # type: ignore[arg-type]
                connection.request("POST", callback.url, callback.body, callback.headers)
                answer = connection.getresponse().read()
                assert b'"actionCode":0' in answer, answer
                self.accepted += 1
                self.last[user] = (seq + number, step.lower())
        except BaseException as error:  # the test's thread must learn of it
            self.error = error
        finally:
            connection.close()

    def go_on(self, seconds: float) -> None:
        """Waits until this many more seconds' worth of events have been accepted."""
        enough = self.accepted + int(seconds * self.RATE)
        wait_until(lambda: self.accepted >= enough or self.error, what="the events to flow")

    def stop(self) -> None:
        self._stopping.set()
        self.join()
        if self.error:
            raise self.error

    def not_applied(self, client: Redis) -> set[str]:
        """The users for whom presence does not show what was accepted last; all users while it does not answer."""
        try:
            return {
                user.user_id
                for user in presence.read(client, self.last)
                if (int(user.seq or 0), user.status) != self.last[user.user_id]
            }
        except RedisError:
            return set(self.last)


def changes(client: Redis) -> dict[str, list[tuple[str, str, int]]]:
    """For each user the entries of the stream: status, previous status, seq."""
    found: dict[str, list[tuple[str, str, int]]] = defaultdict(list)
    entries: Any = client.xrange("presence-changes")
    for _, fields in entries:
        text = {name.decode(): value.decode() for name, value in fields.items()}
        found[text["user_id"]].append((text["status"], text["previous"], int(text["seq"])))
    return found


class Endpoint:
    """An address on loopback that leads each new connection to a port, and leaves the old ones where they are."""

    def __init__(self, leads_to: int) -> None:
        self.leads_to = leads_to
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self.leads_to))
                except OSError:
                    client.close()
                    continue
                for source, target in ((client, server), (server, client)):
                    threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    @staticmethod
    def _carry(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
