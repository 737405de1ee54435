"""Each program of examples/ does what it says, also after a Redis that was killed, and stops when it is told to."""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psycopg
import pytest
import recipes
from recipes import OFF, ON, Gateway
from redis import Redis
from support import ROOT, Process, Receiver, Server, Worker, free_port, wait_until
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

Keep = Callable[[Process], Process]


@pytest.fixture
def server(tmp_path: Path, keep: Keep) -> Server:
    """One of its own, which may be killed and forgets nothing."""
    server = Server(tmp_path / "server", appendfsync="always")
    keep(server)
    return server


@pytest.fixture
def redis(server: Server) -> Redis:
    return server.client


@pytest.fixture
def gateway(redis: Redis) -> Gateway:
    return Gateway(redis)


def kill_redis(server: Server, program: Process) -> None:
    """Kills it, and waits until the program has noticed."""
    noticed = program.text().count("waiting")
    server.kill()
    wait_until(lambda: program.text().count("waiting") > noticed, what="the program to notice")


# The web service


class Service(Process):
    def __init__(self, server: Server, directory: Path) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", "uvicorn", "--app-dir", str(recipes.EXAMPLES), "service:app"]
        super().__init__([*command, "--port", str(self.port)], {"REDIS_URL": server.url}, directory, "service")
        wait_until(lambda: "Uvicorn running" in self.text(), what="the service")

    def presence(self, users: object) -> tuple[int, Any]:
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=10)) as connection:
            connection.request("POST", "/presence", json.dumps(users), {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, json.loads(response.read())

    @contextmanager
    def watching(self, users: str) -> Iterator[ClientConnection]:
        with connect(f"ws://127.0.0.1:{self.port}/changes", proxy=None) as socket:
            socket.send(users)
            yield socket


def call_back(receiver: Receiver, command: str, user: str, platform_id: int = 1) -> None:
    """As OpenIM does."""
    now = time.time_ns() // 1_000_000
    body = {"userID": user, "callbackCommand": command, "seq": now, "operationID": f"{now}", "platformID": platform_id}
    status, _ = receiver.post(
        f"/callbackExample/{command}", {"Content-Type": "application/json"}, json.dumps(body).encode()
    )
    assert status == 200


def test_the_service_says_who_is_online_and_pushes_each_change(server: Server, tmp_path: Path, keep: Keep) -> None:
    receiver, worker = Receiver(tmp_path, server.url), Worker(tmp_path, server.url)
    keep(receiver)
    keep(worker)
    service = Service(server, tmp_path)
    keep(service)
    call_back(receiver, ON, "alice")
    call_back(receiver, OFF, "bob")

    def asked() -> dict[str, Any]:
        status, users = service.presence(["alice", "bob", "nobody"])
        assert status == 200
        return {user["user_id"]: (user["status"], user["platforms"]) for user in users}

    known = {"alice": ("online", [1]), "bob": ("offline", []), "nobody": ("unknown", [])}
    wait_until(lambda: asked() == known)
    by_hand = recipes.text("ask.sh").replace("127.0.0.1:8000", f"127.0.0.1:{service.port}")
    done = subprocess.run(["sh", "-c", by_hand], capture_output=True, text=True, timeout=20, check=True)
    assert json.loads(done.stdout) == service.presence(["alice", "bob"])[1]
    assert service.presence(["x"] * 10_001)[0] == service.presence("alice")[0] == 422

    with service.watching('["alice", "bob", "nobody"]') as socket:

        def pushed() -> tuple[str, str]:
            user = json.loads(socket.recv(timeout=20))
            return user["user_id"], user["status"]

        assert {pushed(), pushed(), pushed()} == {(user, status) for user, (status, _) in known.items()}
        call_back(receiver, ON, "carol")  # nobody asked
        call_back(receiver, OFF, "alice")
        assert pushed() == ("alice", "offline")
        call_back(receiver, ON, "nobody")
        assert pushed() == ("nobody", "online")

        server.kill()
        assert service.presence(["alice"])[0] == 503
        with service.watching('["alice"]') as late, pytest.raises(ConnectionClosed, match="1013"):
            late.recv(timeout=20)
        server.restart()
        call_back(receiver, ON, "bob")
        assert pushed() == ("bob", "online")

        server.client.xtrim("presence-changes", maxlen=0, approximate=False)
        call_back(receiver, OFF, "bob")  # whether the service missed it or not
        assert pushed() == ("bob", "offline")
        socket.send('["carol"]')
        assert pushed() == ("carol", "online")

        with service.watching("alice") as garbled, pytest.raises(ConnectionClosed, match="1008"):
            garbled.recv(timeout=20)
        assert service.stop() in (0, -signal.SIGTERM)  # uvicorn ends by the signal that it was sent
        with pytest.raises(ConnectionClosed, match="1012"):
            socket.recv(timeout=20)
    assert "Application shutdown complete" in service.text()
    assert "Traceback" not in service.text()


# A push for those who stay away


def test_a_push_goes_to_those_who_stay_away_and_to_nobody_else(
    gateway: Gateway, redis: Redis, server: Server, tmp_path: Path, keep: Keep
) -> None:
    program = recipes.write(tmp_path, "push.py", AWAY_SECONDS="0.5", POLL_SECONDS="0.05")
    push = recipes.Recipe(program, REDIS_URL=server.url)
    keep(push)

    def pushed() -> list[str]:
        return [line for line in push.text().splitlines() if line.startswith("push to")]

    gateway(ON, "alice", "bob", "carol", "dave", "old")
    gateway(OFF, "old", at=1)
    gateway(OFF, "alice", "bob")
    gateway(ON, "bob")  # within the time
    wait_until(lambda: pushed() == ["push to alice"])

    gateway(OFF, "carol")
    wait_until(lambda: redis.zscore("push-timers", "carol"))
    push.kill()
    gateway(OFF, "dave", "erin")
    gateway(ON, "erin")  # while it is away
    push.start()
    wait_until(lambda: sorted(pushed()) == ["push to alice", "push to carol", "push to dave"])

    gateway(OFF, "bob")
    kill_redis(server, push)
    server.restart()
    wait_until(lambda: pushed()[3:] == ["push to bob"])
    wait_until(lambda: redis.zcard("push-timers") == 0)
    kill_redis(server, push)
    assert push.stop() == 0
    assert len(pushed()) == 4


# The mirror


class Database:
    """url: what the program is told."""

    url: str
    missing: type[Exception]

    def connect(self) -> Any:
        raise NotImplementedError

    def rows(self) -> dict[str, tuple[str, int, int]]:
        """Status, changed_at and ms of each user; none before the program has made its table."""
        with closing(self.connect()) as connection:
            try:
                found = connection.execute("SELECT user_id, status, changed_at, ms FROM presence").fetchall()
            except self.missing:
                return {}
        return {user: tuple(row) for user, *row in found}

    def restart(self) -> None:
        """Ends all connections, if it is a server."""


class SQLite(Database):
    missing = sqlite3.OperationalError

    def __init__(self, directory: Path) -> None:
        shutil.copy(ROOT / "tests" / "psycopg_on_sqlite.py", directory / "psycopg.py")
        self.url = str(directory / "mirror.db")

    def connect(self) -> Any:
        return sqlite3.connect(self.url, isolation_level=None)


class PostgreSQL(Database):
    missing = psycopg.errors.UndefinedTable

    def __init__(self, directory: Path, initdb: Path) -> None:
        data = directory / "postgresql"
        data.mkdir()
        self._options: dict[str, Any] = {"cwd": data, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        if os.geteuid() == 0:  # PostgreSQL does not run as root
            shutil.chown(data, "postgres")
            for folder in (directory, *directory.parents[:3]):
                folder.chmod(folder.stat().st_mode | 0o011)
            self._options["user"] = "postgres"
        make = [initdb, "-D", "db", "-U", "postgres", "-A", "trust", "--no-sync"]
        subprocess.run(make, check=True, **self._options)
        self._command = [initdb.with_name("postgres"), "-D", "db", "-k", str(data), "-h", "", "-F"]
        self.url = f"host={data} user=postgres dbname=postgres"
        self.start()

    def start(self) -> None:
        self._server = subprocess.Popen(self._command, **self._options)
        wait_until(self._answers, what="PostgreSQL")

    def stop(self) -> None:
        self._server.send_signal(signal.SIGINT)  # not killed, or its shared memory would stay
        self._server.wait()

    def restart(self) -> None:
        self.stop()
        self.start()

    def connect(self) -> Any:
        return psycopg.connect(self.url, autocommit=True)

    def _answers(self) -> bool:
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True


@contextmanager
def sqlite(directory: Path) -> Iterator[Database]:
    yield SQLite(directory)


@contextmanager
def postgresql(directory: Path) -> Iterator[Database]:
    found = [shutil.which("initdb"), *sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))]
    initdb = next((Path(each) for each in found if each), None)
    if not initdb:
        pytest.skip("needs PostgreSQL's programs (apt-get install postgresql), for the mirror on the real thing")
    database = PostgreSQL(directory, initdb)
    try:
        yield database
    finally:
        database.stop()


def known(redis: Redis) -> dict[str, tuple[str, int]]:
    """What Redis says of each user."""
    hashes = {key.decode().partition(":")[2]: redis.hgetall(key) for key in redis.scan_iter("presence:*")}
    return {name: (each[b"status"].decode(), int(each[b"changed_at"])) for name, each in hashes.items()}


@pytest.mark.parametrize("kind", [sqlite, postgresql])
def test_the_mirror_says_what_redis_says(
    kind: Callable[[Path], Any], gateway: Gateway, redis: Redis, server: Server, tmp_path: Path, keep: Keep
) -> None:
    with kind(tmp_path) as database:

        def is_equal() -> bool:
            return {user: row[:2] for user, row in database.rows().items()} == known(redis)

        gateway(ON, "here before")
        redis.delete("presence-changes")
        program = recipes.write(tmp_path, "mirror.py", TAKE_OVER_SECONDS="0.2")
        mirrors = []
        for name in ("mirror-1", "mirror-2"):
            settings = {"REDIS_URL": server.url, "DATABASE_URL": database.url, "CONSUMER": name}
            mirrors.append(Process([sys.executable, str(program)], settings, tmp_path, name))
            keep(mirrors[-1])
        wait_until(is_equal)
        for round_number in range(40):
            gateway(random.choice([ON, OFF]), *random.sample([f"u{number}" for number in range(9)], 4))
            if round_number == 20:
                mirrors[0].kill()
        wait_until(is_equal)
        mirrors[0].start()
        redis.xgroup_setid("presence-changes", "mirror", "0")  # everything once more
        gateway(OFF, "last", at=5)
        wait_until(is_equal)

        kill_redis(server, mirrors[0])
        server.restart()
        database.restart()
        gateway(ON, "last")
        wait_until(is_equal)
        assert len(known(redis)) > 5
        assert mirrors[0].stop() == 0
        kill_redis(server, mirrors[1])
        assert mirrors[1].stop() == 0


def test_a_mirror_that_missed_changes_renews_rows_whose_ids_are_ahead_of_the_clock(
    gateway: Gateway, redis: Redis, server: Server, tmp_path: Path, keep: Keep
) -> None:
    database, ahead = SQLite(tmp_path), 9_999_999_999_999

    def mirrored() -> list[Any]:
        return [row[::2] for user, row in database.rows().items() if user == "alice"]

    gateway(ON, "alice")
    redis.xadd("presence-changes", {"user_id": "alice", "status": "online"}, id=f"{ahead}-1")
    program = recipes.write(tmp_path, "mirror.py")
    mirror = recipes.Recipe(program, REDIS_URL=server.url, DATABASE_URL=database.url)
    keep(mirror)
    wait_until(lambda: mirrored() == [("online", ahead)])
    mirror.kill()
    gateway(OFF, "alice")
    redis.xtrim("presence-changes", maxlen=0, approximate=False)
    mirror.start()
    wait_until(lambda: mirrored() == [("offline", ahead)])


# Readers in other languages


@pytest.fixture(params=["in Node", "in Go"])
def reader(request: pytest.FixtureRequest, shared_tmp: Path) -> list[str]:
    """What starts it."""
    if request.param == "in Go":
        return [str(recipes.make_once(shared_tmp, "go", recipes.make_go) / "bin" / "reader")]
    return ["node", str(recipes.make_once(shared_tmp, "node", recipes.make_node) / "reader.mjs")]


def test_a_reader_shows_users_and_follows_their_changes(
    reader: list[str], gateway: Gateway, redis: Redis, server: Server, tmp_path: Path, keep: Keep
) -> None:
    gateway(ON, "alice", "bob", at=1732345678000)
    gateway(OFF, "bob", at=1732345679000)
    program = Process([*reader, "alice", "bob", "nobody"], {"REDIS_URL": server.url}, tmp_path, "reader")
    keep(program)
    shown = 0

    def shows(*lines: str) -> None:
        """Waits for these, which must be the next."""
        nonlocal shown

        def new() -> list[str]:
            users = [
                line.strip() for line in program.text().splitlines() if line.startswith(("alice", "bob", "nobody"))
            ]
            return users[shown:]

        wait_until(lambda: len(new()) >= len(lines), what=f"{lines} in {program.text()}")
        assert new() == list(lines)
        shown += len(lines)

    alice, bob = "alice online 2024-11-23T07:07:58.000Z 1", "bob offline 2024-11-23T07:07:59.000Z"
    shows(alice, bob, "nobody unknown")
    assert "waiting" not in program.text()
    gateway(ON, "carol")  # nobody asked
    gateway(ON, "bob", at=1732345680000)
    bob = "bob online 2024-11-23T07:08:00.000Z 1"
    shows(bob)

    program.signal(signal.SIGSTOP)
    gateway(OFF, "alice", at=1732345681000)
    redis.xtrim("presence-changes", maxlen=0, approximate=False)
    program.signal(signal.SIGCONT)
    shows("alice offline 2024-11-23T07:08:01.000Z", bob, "nobody unknown")

    kill_redis(server, program)
    wait_until(lambda: "refused" in program.text().lower(), what="the program to say why")
    server.restart()
    gateway(ON, "nobody", at=1732345682000)
    shows("nobody online 2024-11-23T07:08:02.000Z 1")

    if reader[0] == "node":  # go-redis would take 11 s to notice
        noticed = program.text().count("waiting")
        server.signal(signal.SIGSTOP)
        wait_until(lambda: program.text().count("waiting") > noticed, what="the program to notice")
        server.signal(signal.SIGCONT)
        gateway(OFF, "nobody", at=1732345683000)
        shows("nobody offline 2024-11-23T07:08:03.000Z")
    kill_redis(server, program)
    assert program.stop() == 0
