"""Every command of an operator, with the rights that docs/redis-servers.md gives to our users, and no others."""

import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import failed
import openim as fakes
import pytest
import recipes
from click.testing import CliRunner, Result
from redis import Redis
from support import Process, Receiver, Server, Worker, wait_until

from shared.cli import cli
from shared.queue import open_queue
from shared.settings import Settings

EVENT = b'{"userID":"alice","callbackCommand":"callbackUserOnlineCommand","seq":1,"operationID":"op"}'
BATCH = "batch-0"
#: Those that are not asked of Redis, or run until they are stopped: the last are run by the test as programs.
OTHERS = {"send", "up", "watch", "receiver", "worker"}


def documented(user: str) -> list[str]:
    """The words after ACL SETUSER and the name."""
    lines = [shlex.split(line) for line in recipes.text("users.sh").splitlines() if f"SETUSER {user} " in line]
    return lines[0][4:]


@pytest.fixture(params=["two users", "one user"])
def urls(request: pytest.FixtureRequest, server: Server) -> Iterator[dict[str, str]]:
    """Where both URLs name one server, one user may have the rights of both."""
    rules = {name: documented(name) for name in ("presence-queue", "presence-worker")}
    if request.param == "one user":
        rules = {"presence-both": [word for words in rules.values() for word in words]}
    for name, words in rules.items():
        server.client.execute_command("ACL", "SETUSER", name, *words)
    queue, presence = (server.url.replace("//", f"//{name}:secret@") for name in (list(rules) * 2)[:2])
    yield {"queue_url": queue, "redis_url": presence}
    for name in rules:
        server.client.acl_deluser(name)


def test_each_command_works(
    urls: dict[str, str], redis: Redis, tmp_path: Path, keep: Callable[[Process], Process]
) -> None:
    failed.fail(open_queue(redis, Settings()), redis)  # before a worker would take it
    receiver = Receiver(tmp_path, urls["redis_url"], queue_url=urls["queue_url"])
    keep(receiver)
    worker = Worker(tmp_path, urls["redis_url"], queue_url=urls["queue_url"])
    keep(worker)
    assert receiver.post("/", {"Content-Type": "application/json"}, EVENT)[0] == 200
    wait_until(lambda: redis.hget("presence-stats", "users_online") == b"1", what="the event to be applied")
    environment = {f"PRESENCE_{name.upper()}": value for name, value in urls.items()}
    environment |= {"PRESENCE_PORT": str(receiver.port), "PRESENCE_ADMIN_PORT": str(receiver.admin_port)}
    environment |= {"PRESENCE_HOST": "127.0.0.1", "PRESENCE_JOURNAL_DIR": str(tmp_path / "journal")}
    called = set()

    def run(line: str, *codes: int) -> Result:
        called.add(line.split(maxsplit=1)[0])
        ran = CliRunner().invoke(cli, line.split(), env=environment)
        assert ran.exit_code in (codes or (0,)), f"{line}: {ran.output} {ran.exception!r}"
        assert "permission" not in ran.output
        return ran

    assert "online" in run("get alice").output
    assert "alice" in run("get --all --status online").output
    assert "alice has been online" in run("why alice").output
    assert "1 failed batch to look at" in run("status", 1).output
    assert "P020" not in run("doctor", 1).output
    assert "bad" in run("failed list").output
    run(f"failed requeue {BATCH}", 0, 1)  # 1 if it fails again at once
    wait_until(lambda: redis.zcard("rq:failed:presence"), what="the batch to fail again")
    run(f"failed drop {BATCH}")
    run("forget bad")
    with fakes.serving(7) as openim:
        environment |= {"PRESENCE_OPENIM_API": openim.url, "PRESENCE_OPENIM_SECRET": fakes.SECRET}
        openim.im.open("bob", 1)
        openim.users = ["bob"]
        run("reconcile --all --dry-run", 1)
        assert "opened" in run("reconcile --all").output
        assert "OpenIM itself says" in run("why alice").output
    assert "forgotten" in run("forget alice").output
    assert called == set(cli.commands) - OTHERS
    wait_until(lambda: redis.hget("presence:bob", "status") == b"online", what="the correction to be applied")
    for program in (receiver, worker):
        assert "permission" not in program.text(), program.text()


@pytest.mark.parametrize(
    ("rules", "what"),
    [("+@all -info ~*", "INFO"), ("+@all ~other*", "rq:queue:presence")],
)
def test_a_right_that_is_missing_is_not_taken_for_a_wrong_key(server: Server, rules: str, what: str) -> None:
    server.client.execute_command("ACL", "SETUSER", "poor", "on", "nopass", *rules.split())
    environment = {"PRESENCE_REDIS_URL": server.url.replace("//", "//poor:any@"), "PRESENCE_ADMIN_PORT": "0"}
    try:
        status = CliRunner().invoke(cli, ["status"], env=environment)
        doctor = CliRunner().invoke(cli, ["doctor", "--json"], env=environment)
    finally:
        server.client.acl_deluser("poor")
    assert f"Redis does not let us read {what}: " in status.output
    assert "a key is wrong" not in status.output
    assert {"P010", "P022"}.isdisjoint(each["code"] for each in json.loads(doctor.stdout)["findings"])
