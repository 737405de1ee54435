"""`presence status` and `presence failed` say what is really there."""

import json
import os
import re
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from click.testing import CliRunner
from click.testing import Result as Ran
from failed import EVENT, WRONG_TYPE, fail
from redis import Redis
from rq import Queue, SimpleWorker
from rq.serializers import JSONSerializer
from support import Process, Receiver, Server, Worker, children, set_clock_ahead, wait_until

from shared.cli import cli
from shared.queue import BatchJob, BatchMeta, enqueue_alone, enqueue_encoded, open_queue
from shared.settings import Settings
from worker import jobs
from worker.store.store import Store

Run = Callable[..., Ran]
NO_RECEIVER = {"PRESENCE_ADMIN_PORT": "0"}


@pytest.fixture
def run(server: Server, monkeypatch: pytest.MonkeyPatch) -> Run:
    # The package has the command under the module's name.
    monkeypatch.setattr(import_module("shared.cli.status"), "BETWEEN_SECONDS", 0.01)

    def run_(*arguments: str, **environment: str) -> Ran:
        environment = {"PRESENCE_REDIS_URL": server.url, **NO_RECEIVER, **environment}
        return CliRunner().invoke(cli, arguments, env=environment)

    return run_


# status


def test_all_is_well(run: Run, receiver: Receiver, worker: Worker, redis: Redis) -> None:
    body = b'{"userID":"alice\\u001b[31m","callbackCommand":"callbackUserOnlineCommand","seq":1,"operationID":"op"}'
    assert receiver.post("/", {"Content-Type": "application/json"}, body)[0] == 200
    wait_until(lambda: redis.exists("presence:alice\x1b[31m") and redis.scard("rq:workers:presence"))
    wait_until(lambda: [json.loads(each)["events"] for each in redis.hvals("presence-receivers")] == [0])
    here = {"PRESENCE_ADMIN_PORT": str(receiver.admin_port)}
    result = run("status", "--json", **here)
    state = json.loads(result.output)
    assert (result.exit_code, state["healthy"], state["problems"]) == (0, True, [])
    assert state["receiver_here"]["status"] == "ready"
    assert [each["events"] for each in state["receivers"]] == [0]
    assert [each["state"] for each in state["workers"]] == ["idle"]
    assert state["queue"] == {"jobs": 0, "oldest_ms": 0, "running": 0, "retrying": 0, "failed": 0}
    assert state["rates"] == {"events": 0, "changes": 0}
    assert state["lag_seconds"]["p99"] > 0
    assert (state["events"]["applied"], state["changes"]) == (1, 1)
    assert state["last_change"]["user_id"] == "alice\x1b[31m"
    assert state["redis"]["queue"]["version"]
    text = run("status", **here)
    assert text.exit_code == 0
    assert text.output.startswith("healthy")
    assert "\x1b" not in text.output


def test_the_age_of_the_last_change_does_not_depend_on_this_machines_clock(run: Run, redis: Redis) -> None:
    seconds = redis.time()[0] - 7
    redis.xadd("presence-changes", {"user_id": "alice", "status": "online", "changed_at": seconds * 1000})
    with patch.object(import_module("shared.cli.text").time, "time_ns", lambda: (seconds + 3600) * 10**9):
        assert re.search(r"last change +alice online, [78] s ago", run("status").output)


def test_what_waits_is_shown_and_since_when(run: Run, redis: Redis) -> None:
    enqueue_encoded(open_queue(redis, Settings()), [json.dumps(EVENT).encode()], 7)
    result = run("status", "--json")
    state = json.loads(result.output)
    assert result.exit_code == 1
    assert (state["queue"]["jobs"], state["queue"]["oldest_ms"]) == (1, 7)
    assert len(state["problems"]) == 3  # no receiver, no worker, and it has waited since 1970
    assert "NOT healthy" in run("status").output


def test_what_a_frozen_worker_took_is_counted_and_the_worker_named(run: Run, worker: Worker, redis: Redis) -> None:
    key = wait_until(lambda: next(iter(redis.smembers("rq:workers:presence")), None))
    worker.signal(signal.SIGSTOP)
    seen = datetime.fromtimestamp(redis.time()[0] - 20, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    redis.hset(key, "last_heartbeat", seen)
    queue = open_queue(redis, Settings())
    enqueue_encoded(queue, [json.dumps(EVENT).encode()], 7)
    redis.lmove(queue.key, queue.intermediate_queue_key, "LEFT", "RIGHT")  # as RQ takes a job
    state = json.loads(run("status", "--json").output)
    assert (state["queue"]["jobs"], state["queue"]["oldest_ms"], state["workers"]) == (1, 7, [])
    assert any(re.search(rf"silent for 2\d s, host \S+, pid {worker.popen.pid}:", note) for note in state["notes"])
    assert redis.ttl(key) > 60


def test_without_redis_it_says_so_in_time(run: Run) -> None:
    started = time.monotonic()
    result = run("status", PRESENCE_REDIS_URL="redis://:geheim@127.0.0.1:1/0")
    assert time.monotonic() - started < 2
    assert result.exit_code == 1
    assert "Redis, redis://127.0.0.1:1/0, does not answer" in result.output
    assert "geheim" not in result.output


def test_a_frozen_redis_does_not_hold_it_up(run: Run, tmp_path: Path, keep: Callable[[Process], Process]) -> None:
    frozen = Server(tmp_path / "server")
    keep(frozen)
    frozen.signal(signal.SIGSTOP)
    started = time.monotonic()
    result = run("status", "--json", PRESENCE_REDIS_URL=frozen.url)
    assert time.monotonic() - started < 2
    assert "does not answer" in json.loads(result.output)["problems"][0]


def test_a_frozen_receiver_on_this_machine_is_named_at_once(run: Run, receiver: Receiver, worker: Worker) -> None:
    wait_until(lambda: receiver.readiness()[0] == 200)
    receiver.signal(signal.SIGSTOP)
    result = run("status", PRESENCE_ADMIN_PORT=str(receiver.admin_port))
    assert result.exit_code == 1
    assert f"does not answer at 127.0.0.1:{receiver.admin_port}: frozen" in result.output


def test_a_frozen_process_of_the_receiver_on_this_machine_is_named_at_once(
    run: Run, server: Server, tmp_path: Path, keep: Callable[[Process], Process]
) -> None:
    receiver = Receiver(tmp_path / "r", server.url, processes="2")
    keep(receiver)
    wait_until(lambda: receiver.readiness()[0] == 200)
    frozen = min(children(receiver))
    os.kill(frozen, signal.SIGSTOP)
    result = run("status", PRESENCE_ADMIN_PORT=str(receiver.admin_port))
    assert result.exit_code == 1
    assert f"the receiver on this machine is not ready: process {frozen} does not answer" in result.output


@pytest.mark.parametrize("processes", ["1", "2"])
def test_what_came_last_and_what_is_refused_is_said(
    run: Run, server: Server, worker: Worker, tmp_path: Path, keep: Callable[[Process], Process], processes: str
) -> None:
    receiver = Receiver(tmp_path / "r", server.url, basic_auth="openim:geheim", processes=processes)
    keep(receiver)
    wait_until(lambda: receiver.readiness()[0] == 200)
    body = b'{"userID":"alice","callbackCommand":"callbackUserOnlineCommand","seq":1,"operationID":"op"}'
    json_type = {"Content-Type": "application/json"}
    here = {"PRESENCE_ADMIN_PORT": str(receiver.admin_port)}
    for _ in range(8):
        assert receiver.post("/", json_type, body)[0] == 401
    result = run("status", **here)
    assert result.exit_code == 1
    assert "every callback is refused: 8 lately, the last from 127.0.0.1: 401 callbacks must carry" in result.output
    for _ in range(8):
        assert receiver.post("/", {**json_type, "Authorization": "Basic b3BlbmltOmdlaGVpbQ=="}, body)[0] == 200
    result = run("status", **here)
    assert "every callback" not in result.output
    assert re.search(r"\ncallbacks +callbackUserOnlineCommand from 127.0.0.1, \d+ s ago", result.output)
    assert re.search(r"\nrefused +401 callbacks must carry .*: 8 times since .* from 127.0.0.1\n", result.output)
    local = json.loads(run("status", "--json", **here).output)["receiver_here"]
    assert [(each["command"], each["peer"]) for each in local["callbacks"]] == [
        ("callbackUserOnlineCommand", "127.0.0.1")
    ]
    assert abs(local["callbacks"][0]["at_ms"] - time.time() * 1000) < 60_000
    assert [(each["status"], each["count"], each["probe"]) for each in local["refused"]] == [(401, 8, False)]


@pytest.mark.parametrize(
    "key", ["rq:queue:presence", "rq:failed:presence", "rq:workers:presence", "presence-receivers", "presence-stats"]
)
def test_a_key_of_a_wrong_type_is_named(run: Run, redis: Redis, key: str) -> None:
    redis.set(key, "in the way")
    result = run("status")
    assert result.exit_code == 1
    assert f"a key is wrong: {key}: WRONGTYPE" in result.output


@pytest.mark.parametrize("at", ["-", "", "9" * 5000])
def test_a_change_of_another_program_without_a_time_is_shown(run: Run, redis: Redis, at: str) -> None:
    redis.xadd("presence-changes", {"user_id": "odd", "status": "offline", "changed_at": at})
    assert "last change  odd offline, at an unknown time" in run("status").output


def test_ctrl_c_before_there_is_an_answer_ends_it_without_a_word(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(import_module("shared.cli.status").Poller, "poll", interrupted)
    result = run("status")
    assert (result.exit_code, result.output) == (1, "")


def test_counters_that_cannot_be_read_are_not_taken_for_zeros(run: Run, redis: Redis) -> None:
    redis.set("presence-stats", "x")
    said = json.loads(run("status", "--json").output)
    assert (said["users_online"], said["events"], said["rates"]["events"]) == (None, None, None)
    assert "\nusers " not in run("status").output


def test_a_server_that_has_become_a_replica_is_named(
    run: Run, tmp_path: Path, keep: Callable[[Process], Process]
) -> None:
    server = Server(tmp_path / "server")
    keep(server)
    server.client.replicaof("127.0.0.1", "1")
    result = run("status", PRESENCE_REDIS_URL=server.url)
    assert "the queue's Redis is a replica of 127.0.0.1:1, and takes no writes" in result.output


# failed


@pytest.fixture
def queue(redis: Redis) -> Queue:
    return open_queue(redis, Settings())


def apply(queue: Queue, redis: Redis) -> None:
    worker = SimpleWorker([queue], connection=redis, serializer=JSONSerializer, job_class=BatchJob)
    with (
        patch.object(jobs, "_store", lambda: Store(redis, Settings())),
        patch.object(jobs, "_settings", Settings),
    ):
        worker.work(burst=True, logging_level="CRITICAL")


def listed(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run("failed", "list", "--json").output.splitlines()]


def test_nothing_failed(run: Run) -> None:
    assert run("failed", "list").output == "nothing has failed\n"
    assert run("failed", "list", "--json").output == ""


def test_it_says_what_failed_why_whose_it_is_and_since_when(run: Run, queue: Queue, redis: Redis) -> None:
    fail(queue, redis)
    (batch,) = listed(run)
    assert abs(batch.pop("failed_at") - time.time() * 1000) < 60_000
    assert batch == {
        "id": "batch-0",
        "error": WRONG_TYPE,
        "attempts": 6,
        "events": [
            {"user_id": "bad", "command": EVENT[1], "seq": "9007199254740993", "operation_id": "op-7"},
        ],
    }
    text = run("failed", "list").output
    assert "WRONGTYPE" in text
    assert "operationID op-7" in text


def test_what_is_still_broken_comes_back_and_what_is_mended_does_not(run: Run, queue: Queue, redis: Redis) -> None:
    fail(queue, redis)
    assert run("failed", "requeue", "batch-0").output == "1 requeued\n"
    assert (queue.job_ids, listed(run)) == (["batch-0"], [])
    apply(queue, redis)
    assert [(batch["attempts"], batch["error"]) for batch in listed(run)] == [(7, WRONG_TYPE)]
    redis.delete("presence:bad")
    assert run("failed", "requeue", "--all").exit_code == 0
    apply(queue, redis)
    assert listed(run) == []
    assert redis.hget("presence:bad", "seq") == str(2**53 + 1).encode()
    assert redis.hget("presence-stats", "failed") == b"1"
    assert not [name for name in redis.hkeys("presence-stats") if name.startswith(b"lag")]  # it waited for a person


def test_times_of_what_failed_are_by_the_clock_of_redis(
    run: Run, queue: Queue, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(queue, redis)
    due = enqueue_alone(queue, EVENT, "trying", BatchMeta(7), "no hash").id
    redis.zadd(queue.scheduled_job_registry.key, {due: int(time.time()) + 60})
    set_clock_ahead(monkeypatch, 3600)
    text = run("failed", "list").output
    assert re.search(r"failed \S+ \S+ \(\d s ago\)", text)
    assert re.search(r"next in [56]\d s", text)


def test_what_is_still_being_tried_is_listed_and_what_to_do_next(run: Run, queue: Queue, redis: Redis) -> None:
    fail(queue, redis)
    redis.zadd(
        queue.scheduled_job_registry.key, {enqueue_alone(queue, EVENT, "trying", BatchMeta(7), "no hash").id: 2**32}
    )
    *_, trying, hint = run("failed", "list").output.splitlines()
    assert re.match(r"still being tried, next in \d+ s: bad: no hash$", trying)
    assert "presence failed requeue ID" in hint


def test_a_requeue_that_fails_again_says_so(run: Run, queue: Queue, redis: Redis) -> None:
    fail(queue, redis)
    redis.sadd("rq:workers:presence", "somebody")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run, "failed", "requeue", "--all")
        wait_until(lambda: queue.job_ids)
        apply(queue, redis)  # RQ's worker wants the main thread
        result = running.result()
    assert (result.exit_code, result.stdout) == (1, "1 requeued\n")
    assert f"presence: batch-0 has failed again: {WRONG_TYPE}" in result.stderr


def test_dropped_is_gone(run: Run, queue: Queue, redis: Redis) -> None:
    fail(queue, redis, "one")
    fail(queue, redis, "two")
    assert run("failed", "drop", "one").output == "1 dropped\n"
    assert [batch["id"] for batch in listed(run)] == ["two"]
    assert run("failed", "drop", "--all").output == "1 dropped\n"
    assert not redis.keys("rq:job:*")
    assert not redis.keys("rq:results:*")


@pytest.mark.parametrize("action", ["requeue", "drop"])
@pytest.mark.parametrize("which", [[], ["--all", "one"]])
def test_without_saying_which_nothing_is_done(
    run: Run, queue: Queue, redis: Redis, action: str, which: list[str]
) -> None:
    fail(queue, redis, "one")
    result = run("failed", action, *which)
    assert (result.exit_code, "nothing was done" in result.output) == (2, True)
    assert len(listed(run)) == 1


@pytest.mark.parametrize("action", ["requeue", "drop"])
def test_what_is_not_among_the_failed_is_left_alone(run: Run, queue: Queue, redis: Redis, action: str) -> None:
    job = enqueue_alone(queue, EVENT, "waiting", BatchMeta(7), "why")
    result = run("failed", action, "waiting")
    assert (result.exit_code, "not among the failed" in result.output) == (1, True)
    assert queue.job_ids == ["waiting"]
    assert redis.exists(job.key)


def test_a_requeue_that_is_cut_short_has_lost_nothing(run: Run, queue: Queue, redis: Redis) -> None:
    """It is one transaction: if Redis refuses a part of it, or does not get it, the batch stays where it was."""
    fail(queue, redis)
    redis.delete("rq:queue:presence")
    with patch("redis.client.Pipeline.execute", side_effect=KeyboardInterrupt):
        run("failed", "requeue", "--all")
    assert [batch["id"] for batch in listed(run)] == ["batch-0"]
    assert run("failed", "requeue", "--all").output == "1 requeued\n"


def test_a_queue_of_a_wrong_type_takes_nothing_out_of_the_failed(run: Run, queue: Queue, redis: Redis) -> None:
    fail(queue, redis)
    redis.set("rq:queue:presence", "in the way")
    assert run("failed", "requeue", "--all").exit_code == 1
    assert redis.zrange("rq:failed:presence", 0, -1) == [b"batch-0"]


def test_what_another_program_left_there_can_be_seen_and_dropped(run: Run, queue: Queue, redis: Redis) -> None:
    Queue("presence", connection=redis).enqueue("os.getpid")  # a pickle
    apply(queue, redis)
    redis.zadd("rq:failed:presence", {"gone": 1})
    assert sorted(batch["error"] for batch in listed(run)) == [
        "its job is gone: drop it",
        "rq.exceptions.DeserializationError",
    ]
    assert run("failed", "drop", "--all").output == "2 dropped\n"
