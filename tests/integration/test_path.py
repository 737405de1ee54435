"""The whole path: HTTP in, hash out."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis
from support import PRESENCE, Process, Receiver, Server, Worker, load_samples, presence, wait_until

Keep = Callable[[Process], Process]


def status_of(redis: Redis, user: str) -> bytes | None:
    return redis.hget(f"presence:{user}", "status")


def test_the_published_example_ends_in_redis(receiver: Receiver, worker: Worker, redis: Redis) -> None:
    (sample,) = (each for each in load_samples("accepted") if each["name"] == "document-offline")
    status, body = receiver.post(sample["target"], sample["headers"], sample["body"])
    assert (status, body) == (200, b'{"actionCode":0,"errCode":0,"errMsg":"","errDlt":"","nextCode":""}')
    wait_until(lambda: status_of(redis, "user123"))
    fields = redis.hgetall("presence:user123")
    assert fields[b"status"] == b"offline"
    assert fields[b"seq"] == b"123456"
    assert fields[b"conn_id"] == b"conn123"
    assert fields[b"operation_id"] == b"1646445464564"


@pytest.mark.usefixtures("worker")
def test_every_shape_ends_in_redis(receiver: Receiver, redis: Redis) -> None:
    samples = [each for each in load_samples("accepted") if not each.get("settings")]
    last = max(sample["event"]["seq"] for sample in samples)
    for sample in samples:
        assert receiver.post(sample["target"], sample["headers"], sample["body"])[0] == 200
    users = {sample["event"]["user_id"] for sample in samples}
    for user in users:
        wait_until(lambda user=user: status_of(redis, user), what=user)
    wait_until(lambda: redis.hget("presence:user123", "seq") == str(last).encode())


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("shape", ["v2", "v3.7", "v3.8"])
def test_of_two_callbacks_with_one_seq_the_online_one_counts(receiver: Receiver, redis: Redis, shape: str) -> None:
    for event in ("offline", "online", "offline"):
        send(receiver, "--shape", shape, "--user", "alice", "--event", event, "--seq", "100")
    wait_until(lambda: applied(redis) == 3)
    assert status_of(redis, "alice") == b"online"


def test_two_workers_share_the_work(
    server: Server, receiver: Receiver, redis: Redis, tmp_path: Path, keep: Keep
) -> None:
    for number in range(2):
        keep(Worker(tmp_path, server.url, f"worker{number}"))
    result = send(receiver, "--users", "600", "--event", "session", "--duplicates", "10", "--reorder")
    assert result["accepted"] == result["sent"] > 1200
    wait_until(lambda: applied(redis) == result["sent"])
    statuses = {status_of(redis, f"user{number}") for number in range(1, 601)}
    assert statuses == {b"offline"}
    assert all(int(redis.hget(f"presence:user{number}", "sessions") or 9) == 0 for number in (1, 300, 600))
    wait_until(lambda: redis.llen("rq:queue:presence") == 0)


def test_a_receiver_reports_how_far_it_has_come(receiver: Receiver, redis: Redis) -> None:
    def report() -> dict[str, int]:
        reports = redis.hvals("presence-receivers")
        return json.loads(reports[0]) if reports else {}

    first = wait_until(report)
    assert (first["events"], first["bytes"]) == (0, 0)
    wait_until(lambda: report()["mark"] > first["at"])
    redis.delete("presence-receivers")
    redis.set("presence-receivers", "of a wrong type")
    wait_until(lambda: "presence-receivers cannot be written" in receiver.text())
    assert send(receiver, "--event", "online", "--users", "10")["accepted"] == 10
    wait_until(lambda: redis.llen("rq:queue:presence"))
    redis.delete("presence-receivers")
    wait_until(report)
    assert receiver.stop() == 0
    assert not redis.exists("presence-receivers")


def applied(redis: Redis) -> int:
    counts = redis.hgetall("presence-stats")
    return sum(int(counts.get(name, 0)) for name in (b"applied", b"duplicate", b"stale"))


def send(receiver: Receiver, *options: str) -> dict[str, int]:
    result = presence("send", "--url", f"http://127.0.0.1:{receiver.port}/callbackExample", "--json", *options)
    assert result.returncode == 0, result.stderr
    report: dict[str, int] = json.loads(result.stdout)
    return report


def test_plain_rq_worker_works_with_the_documented_options(
    server: Server, receiver: Receiver, redis: Redis, tmp_path: Path, keep: Keep
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "commands.md").read_text()
    (line,) = (line.strip() for line in page.splitlines() if line.strip().startswith("rq worker "))
    command = ["bash", "-c", f"exec {Path(sys.executable).parent}/{line}"]
    process = Process(command, {"PRESENCE_REDIS_URL": server.url}, tmp_path, "rq")
    keep(process)
    send(receiver, "--user", "alice", "--event", "online")
    wait_until(lambda: status_of(redis, "alice") == b"online", 30, process.text())
    assert process.stop() == 0  # not killed: the scheduler that it forked would live on, with its connections


def test_rqs_own_tools_can_read_the_queue(server: Server, receiver: Receiver, redis: Redis) -> None:
    send(receiver, "--user", "alice", "--event", "online")
    wait_until(lambda: redis.llen("rq:queue:presence") == 1)
    rq = str(Path(sys.executable).parent / "rq")
    info = subprocess.run([rq, "info", "--url", server.url], capture_output=True, text=True, check=True)
    assert "presence" in info.stdout
    (job_id,) = redis.lrange("rq:queue:presence", 0, -1)
    job = redis.hgetall(f"rq:job:{job_id.decode()}")
    assert job[b"description"] == b"1 events"
    assert b"result" not in job


@pytest.mark.usefixtures("worker")
def test_nothing_is_kept_of_a_finished_job(receiver: Receiver, redis: Redis) -> None:
    send(receiver, "--user", "alice")
    wait_until(lambda: status_of(redis, "alice"))
    wait_until(lambda: not redis.keys("rq:job:*"))
    assert not redis.keys("rq:results:*")
    assert not redis.keys("rq:finished:*")


def test_programs_stop_cleanly_when_asked(receiver: Receiver, worker: Worker, redis: Redis) -> None:
    send(receiver, "--user", "alice")
    wait_until(lambda: status_of(redis, "alice"))
    assert receiver.stop() == 0
    assert worker.stop() == 0
    for program in (receiver, worker):
        assert "stopped" in program.text()
        assert "Traceback" not in program.text()
    wait_until(lambda: redis.scard("rq:workers") == 0)


def test_the_installed_wheel_has_the_functions() -> None:
    script = "from worker.store import library; print('FUNCTION' not in library.SOURCE.replace('-- FUNCTION', ''))"
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
        env={**os.environ},
    )
    assert result.stdout.strip() == "True"
    assert shutil.which(PRESENCE)
