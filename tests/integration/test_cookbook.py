"""Each program of docs/cookbook.md does what the page says."""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import recipes
from redis import Redis
from support import ROOT, Process, Server, on_one_server, wait_until

from shared.cli import embedded
from shared.events import Event
from shared.settings import Settings
from worker.store.store import Outcome, Store

Keep = Callable[[Process], Process]
ON, OFF = "callbackUserOnlineCommand", "callbackUserOfflineCommand"

pytestmark = on_one_server


class Gateway:
    """Applies events as a worker does."""

    def __init__(self, redis: Redis) -> None:
        self.store = Store(redis, Settings())
        self.seq = 0

    def __call__(self, command: Any, *users: str, at: int | None = None) -> None:
        self.seq += 1
        now = int(time.time() * 1000) if at is None else at
        events = [Event(user, command, self.seq, "", 1, "IOS", "", now) for user in users]
        assert all(isinstance(outcome, Outcome) for outcome in self.store.apply(events))


@pytest.fixture
def gateway(redis: Redis) -> Gateway:
    return Gateway(redis)


@pytest.fixture
def three(gateway: Gateway) -> None:
    """alice is online, bob went offline, nobody was never heard of."""
    gateway(ON, "alice", "bob", at=1732345678000)
    gateway(OFF, "bob", at=1732345679000)


# Who is online


PRINTED = {
    "who.py": "True ['alice'] now 2024-11-23T07:07:59+00:00 never\n",
    "who.mjs": "online [ 'alice' ] [ 'now', '2024-11-23T07:07:59.000Z', 'never' ]\n",
    "who.go": "true [alice]\nalice now\nbob 2024-11-23T07:07:59Z\nnobody never\n",
    "phone.py": "alice True\nbob False\nnobody False\n",
    "everybody.py": "1 users are online:\nalice 1732345678000 (1,)\n",
}


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize("name", PRINTED)
def test_who_is_online_and_when_the_others_were(name: str, server: Server, tmp_path: Path) -> None:
    path = recipes.write(tmp_path, name, server.port)
    assert recipes.run(path, "alice", "bob", "nobody") == PRINTED[name]


@pytest.mark.usefixtures("three")
def test_the_same_from_a_shell(server: Server, tmp_path: Path) -> None:
    client = shutil.which("redis-cli") or embedded.find_server().with_name("valkey-cli")
    (tmp_path / "redis-cli").write_text(f'#!/bin/sh\nexec {client} -p {server.port} "$@"\n')
    (tmp_path / "redis-cli").chmod(0o755)
    (tmp_path / "users.txt").write_text("alice\nbob\nnobody\nwith a space\n")
    done = subprocess.run(
        ["bash", "-ec", recipes.text("who.sh")],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.splitlines(), done.stderr) == (["online", "1", "offline", "1732345679000", "1"], "")


# A push for those who stay away


def test_a_push_goes_to_those_who_stay_away_and_to_nobody_else(
    gateway: Gateway, redis: Redis, server: Server, tmp_path: Path, keep: Keep
) -> None:
    push = recipes.Recipe(recipes.write(tmp_path, "push.py", server.port, AWAY_SECONDS="0.5", POLL_SECONDS="0.05"))
    keep(push)

    def pushed() -> list[str]:
        return push.text().splitlines()

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
    wait_until(lambda: redis.zcard("push-timers") == 0)
    assert len(pushed()) == 3


# The mirror


@contextmanager
def sqlite(directory: Path) -> Iterator[str]:
    shutil.copy(ROOT / "tests" / "psycopg_on_sqlite.py", directory / "psycopg.py")
    yield str(directory / "mirror.db")


@contextmanager
def postgresql(directory: Path) -> Iterator[str]:
    found = [shutil.which("initdb"), *sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))]
    initdb = next((Path(each) for each in found if each), None)
    if not initdb:
        pytest.skip("needs a PostgreSQL on this machine, for docs/cookbook.md's mirror on the real thing")
    data = directory / "postgresql"
    data.mkdir()
    owner: dict[str, Any] = {}
    if os.geteuid() == 0:  # PostgreSQL does not run as root
        shutil.chown(data, "postgres")
        for folder in (directory, *directory.parents[:3]):
            folder.chmod(folder.stat().st_mode | 0o011)
        owner = {"user": "postgres"}
    quiet = {"cwd": data, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | owner
    subprocess.run([initdb, "-D", "db", "-U", "postgres", "-A", "trust", "--no-sync"], check=True, **quiet)
    postgres = [initdb.with_name("postgres"), "-D", "db", "-k", str(data), "-h", "", "-F"]
    with subprocess.Popen(postgres, **quiet) as server:
        try:
            yield f"host={data} user=postgres dbname=postgres"
        finally:
            server.send_signal(signal.SIGINT)  # not killed, or its shared memory would stay


def connect(database: str) -> Any:
    if database.startswith("host="):
        return psycopg.connect(database, autocommit=True)
    return sqlite3.connect(database, isolation_level=None)


def connects(database: str) -> bool:
    try:
        connect(database).close()
    except psycopg.OperationalError:
        return False
    return True


@pytest.mark.parametrize("kind", [sqlite, postgresql])
def test_the_mirror_says_what_redis_says(
    kind: Callable[[Path], Any], gateway: Gateway, redis: Redis, server: Server, tmp_path: Path, keep: Keep
) -> None:
    with kind(tmp_path) as database:
        wait_until(lambda: connects(database))
        with closing(connect(database)) as connection:
            connection.execute(recipes.text("presence.sql"))

            def mirrored() -> dict[str, tuple[str, int]]:
                rows = connection.execute("SELECT user_id, status, changed_at FROM presence").fetchall()
                return {user: (status, changed_at) for user, status, changed_at in rows}

            def known() -> dict[str, tuple[str, int]]:
                hashes = {key.decode().partition(":")[2]: redis.hgetall(key) for key in redis.scan_iter("presence:*")}
                return {name: (each[b"status"].decode(), int(each[b"changed_at"])) for name, each in hashes.items()}

            gateway(ON, "here before")
            redis.delete("presence-changes")
            mirrors = []
            for number in (1, 2):
                constants = {"DATABASE": repr(database), "TAKE_OVER_SECONDS": "0.2"}
                program = recipes.write(tmp_path, "mirror.py", server.port, **constants)
                program = program.rename(tmp_path / f"mirror{number}.py")
                program.write_text(program.read_text().replace('"mirror-1"', f'"mirror-{number}"'))
                mirrors.append(recipes.Recipe(program))
                keep(mirrors[-1])
            wait_until(lambda: mirrored() == known())
            for round_number in range(40):
                gateway(random.choice([ON, OFF]), *random.sample([f"u{number}" for number in range(9)], 4))
                if round_number == 20:
                    mirrors[0].kill()
            wait_until(lambda: mirrored() == known())
            mirrors[0].start()
            redis.xgroup_setid("presence-changes", "mirror", "0")  # everything once more
            gateway(OFF, "last", at=5)
            wait_until(lambda: mirrored() == known())
            assert len(known()) > 5


def test_a_mirror_that_missed_changes_renews_rows_whose_ids_are_ahead_of_the_clock(
    gateway: Gateway, redis: Redis, server: Server, tmp_path: Path, keep: Keep
) -> None:
    with sqlite(tmp_path) as database, closing(connect(database)) as connection:
        connection.execute(recipes.text("presence.sql"))

        def mirrored() -> list[tuple[str, int]]:
            return connection.execute("SELECT status, ms FROM presence WHERE user_id = 'alice'").fetchall()

        gateway(ON, "alice")
        ahead = 9_999_999_999_999
        redis.xadd("presence-changes", {"user_id": "alice", "status": "online"}, id=f"{ahead}-1")
        mirror = recipes.Recipe(recipes.write(tmp_path, "mirror.py", server.port, DATABASE=repr(database)))
        keep(mirror)
        wait_until(lambda: mirrored() == [("online", ahead)])
        mirror.kill()
        gateway(OFF, "alice")
        redis.xtrim("presence-changes", maxlen=0, approximate=False)
        mirror.start()
        wait_until(lambda: mirrored() == [("offline", ahead)])
