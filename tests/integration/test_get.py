"""`presence get` of many users, and how it ends."""

import json
import os
import pty
import re
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner
from redis import Redis
from support import PRESENCE, Server, free_port, on_one_server, set_clock_ahead, wait_until

from shared.cli.get import get

pytestmark = on_one_server
USERS = 6000  # enough that a listing of all fills a pipe, and takes a while


@pytest.fixture
def crowd(redis: Redis) -> Redis:
    pipeline = redis.pipeline(transaction=False)
    for number in range(USERS):
        status = "online" if number % 3 == 0 else "offline"
        fields = {"status": status, "seq": number, "changed_at": 1, "updated_at": 1, "sessions": 0}
        pipeline.hset(f"presence:u{number}", mapping=fields)
    pipeline.set("presence:broken", "x")
    pipeline.execute()
    return redis


def start(server: Server, *arguments: str, **streams: int) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PRESENCE_REDIS_URL": server.url}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    return subprocess.Popen([PRESENCE, "get", *arguments], env=environment, text=True, **pipes)


def run(server: Server, *arguments: str, given: str | None = None, exit_code: int = 0) -> list[str]:
    """Runs the command in this process, which is quicker. The lines of its output."""
    result = CliRunner().invoke(get, arguments, given, {"PRESENCE_REDIS_URL": server.url})
    assert (result.exit_code, result.stderr) == (exit_code, "")
    return result.stdout.splitlines()


@pytest.mark.usefixtures("crowd")
def test_all_who_are_online_are_listed_for_programs(server: Server) -> None:
    found = [json.loads(line) for line in run(server, "--all", "--status", "online", "--json")]
    assert sorted(user["user_id"] for user in found) == sorted(f"u{number}" for number in range(0, USERS, 3))
    assert {user["status"] for user in found} == {"online"}


@pytest.mark.usefixtures("crowd")
def test_a_key_that_holds_no_user_is_said_and_stops_nothing(server: Server) -> None:
    (line,) = run(server, "--all", "--status", "unknown", exit_code=1)
    assert line.split(maxsplit=2)[:2] == ["broken", "unknown"]
    assert line.endswith("presence:broken is a string; rename it, or delete it: presence forget broken")
    (found,) = (json.loads(line) for line in run(server, "broken", "--json", exit_code=1))
    assert found == {"user_id": "broken", "status": "unknown", "error": "the key is not a hash"}


def test_a_hash_with_wrong_fields_is_said_whatever_its_status(server: Server, redis: Redis) -> None:
    redis.hset("presence:half", mapping={"status": "online", "changed_at": 1, "updated_at": "x", "sessions": 1})
    (line,) = run(server, "half", exit_code=1)
    assert line.split(maxsplit=2)[:2] == ["half", "online"]
    assert "its updated_at is not a number: presence:half is a hash; rename it" in line
    (found,) = (json.loads(line) for line in run(server, "half", "--json", exit_code=1))
    assert (found["status"], found["error"]) == ("online", "its updated_at is not a number")


@pytest.mark.usefixtures("crowd")
def test_users_come_from_standard_input_where_a_dash_stands(server: Server) -> None:
    given = "\ufeffu3\r\n\n \t\nuser with spaces \nu4"  # as an editor of Windows saves it, and by hand
    lines = run(server, "u1", "-", "u2", "--json", given=given)
    assert [json.loads(line)["user_id"] for line in lines] == ["u1", "u3", "user with spaces", "u4", "u2"]


@pytest.mark.usefixtures("crowd")
def test_named_users_are_filtered_too(server: Server) -> None:
    assert [line.split()[0] for line in run(server, "u1", "u3", "nobody", "--status", "online")] == ["u3"]


@pytest.mark.parametrize("arguments", [[], ["--all", "alice"], ["--status", "away", "alice"]])
def test_wrong_usage_is_said(server: Server, arguments: list[str]) -> None:
    result = CliRunner().invoke(get, arguments, None, {"PRESENCE_REDIS_URL": server.url})
    assert result.exit_code == 2
    assert "Error: " in result.stderr


@pytest.mark.usefixtures("crowd")
def test_a_reader_that_has_enough_ends_it_without_a_word(server: Server) -> None:
    process = start(server, "--all", "--json")
    assert process.stdout and process.stderr
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(30) == 0


@pytest.mark.parametrize("arguments", ["status", "status --json", "why alice", "failed list", "doctor", "--help"])
def test_every_command_says_in_one_line_that_the_disk_is_full(server: Server, arguments: str) -> None:
    environment = {**os.environ, "PRESENCE_REDIS_URL": server.url}
    with Path("/dev/full").open("w") as full:
        process = subprocess.Popen(
            [PRESENCE, *arguments.split()], stdout=full, stderr=subprocess.PIPE, env=environment, text=True
        )
        _, error = process.communicate(timeout=30)
    assert process.returncode == 1
    assert error == "presence: the output cannot be written: [Errno 28] No space left on device\n"


def test_a_closed_standard_input_is_said_in_one_line(server: Server) -> None:
    environment = {**os.environ, "PRESENCE_REDIS_URL": server.url}
    command = ["sh", "-c", 'exec "$0" get - <&-', PRESENCE]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert (ran.returncode, ran.stderr) == (1, "presence: there is no standard input to read from\n")


def test_a_full_disk_is_said_in_one_line(server: Server) -> None:
    with Path("/dev/full").open("w") as full:
        process = start(server, "alice", stdout=full.fileno())
        _, error = process.communicate(timeout=30)
    assert process.returncode == 1
    assert error == "presence: the output cannot be written: [Errno 28] No space left on device\n"


@pytest.mark.usefixtures("crowd")
def test_ctrl_c_ends_it_without_a_word(server: Server) -> None:
    process = start(server, "--all", "--json")
    assert process.stdout
    first = os.read(process.stdout.fileno(), 1).decode()  # not all fits into the pipe, so it is still at it
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (1, "")
    whole, _, _ = (first + out).rpartition("\n")
    assert all(json.loads(line) for line in whole.splitlines())


@pytest.mark.usefixtures("crowd")
def test_progress_is_on_a_terminal_and_not_in_the_output(server: Server) -> None:
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    process = start(server, "-", "--status", "online", stdin=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    shown = b""

    def has_progress() -> bool:
        nonlocal shown
        assert process.stdin
        process.stdin.write("nobody\n" * 1000)
        process.stdin.flush()
        with suppress(BlockingIOError):
            shown += os.read(ours, 10_000)
        return b" users read, 0 shown" in shown

    wait_until(has_progress)
    out, _ = process.communicate("u3\n", timeout=30)
    assert out.startswith("u3 ")
    assert "\x1b" not in out
    os.close(ours)


def test_an_id_cannot_forge_a_line(server: Server, redis: Redis) -> None:
    forged = "bob\nmallory online\x1b[2K\r\u202e\u2028"
    hash_ = {"status": "offline", "command": "x\ny", "platform": "\x1b[31m", "seq": "1\n2"}
    hash_ |= dict.fromkeys(("changed_at", "updated_at", "sessions"), "1")
    redis.hset(f"presence:{forged}", mapping=hash_)
    (line,) = run(server, "--all")
    assert "offline" in line
    assert line.isprintable()
    (found,) = (json.loads(line) for line in run(server, "--all", "--json"))
    assert found["user_id"] == forged


@pytest.fixture
def changed_a_minute_ago(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the clock of this machine is an hour ahead."""
    minute_ago = time.time_ns() // 1_000_000 - 60_000
    times = {"changed_at": minute_ago, "updated_at": minute_ago}
    redis.hset("presence:alice", mapping={"status": "offline", "seq": 1, "sessions": 0, **times})
    set_clock_ahead(monkeypatch, 3600)


@pytest.mark.usefixtures("changed_a_minute_ago")
def test_an_age_is_by_the_clock_of_redis(server: Server) -> None:
    (line,) = run(server, "alice")
    assert re.search(r"\(6\d s ago\)", line)


@pytest.mark.usefixtures("changed_a_minute_ago")
def test_an_age_is_by_this_machine_if_the_queue_does_not_answer(server: Server) -> None:
    result = CliRunner().invoke(
        get,
        ["alice"],
        None,
        {"PRESENCE_REDIS_URL": server.url, "PRESENCE_QUEUE_URL": f"redis://127.0.0.1:{free_port()}"},
    )
    assert (result.exit_code, "(61 min ago)" in result.stdout) == (0, True)
