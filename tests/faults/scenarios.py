"""What breaks: one function for each row of docs/promises.md. Each ends by comparing accepted with applied."""

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from redis.exceptions import BusyLoadingError, RedisError
from rig import Rig
from support import Server, wait_until

#: While Redis is away, answers must stay this fast, on a machine that has nothing else to do.
P99_MS = 50.0

Scenario = Callable[[Rig], None]


def _assert_answers_are_fast(rig: Rig) -> None:
    """On a busy machine even an idle server answers late. A receiver has more to do than to answer a ping: hence 3."""
    assert rig.report.p99_ms < P99_MS + 3 * rig.report.idle_p99_ms, rig.report


def receiver_killed_again_and_again(rig: Rig) -> None:
    server = rig.server()
    receiver, _ = rig.receiver(server.url), rig.worker(server.url)
    load = rig.load(receiver)
    for _ in range(20 if rig.long else 4):
        rig.seconds_of_load(load, rig.random.uniform(0.2, 1.5))
        rig.kill(receiver)
        receiver.start()
        receiver.wait()
    rig.healed()
    rig.wait_until_applied(server)


def receiver_never_comes_back(rig: Rig) -> None:
    server = rig.server()
    first, second = rig.receiver(server.url), rig.receiver(server.url, "other")
    load = rig.load(first)
    rig.load(second)
    rig.seconds_of_load(load, 0.5)
    server.signal(signal.SIGSTOP)  # so that something is left in the journal
    rig.seconds_of_load(load, rig.random.uniform(0.5, 2))
    rig.kill(first)
    server.signal(signal.SIGCONT)
    rig.healed()
    rig.worker(server.url)
    rig.wait_until_applied(server)
    wait_until(lambda: "took over" in second.text() or "took over" in first.text())


def redis_absent_at_the_start(rig: Rig) -> None:
    server = rig.server()
    server.kill()
    receiver = rig.receiver(server.url)
    load = rig.load(receiver)
    rig.seconds_of_load(load, 2)
    assert load.refused == load.unanswered == 0
    server.restart()
    rig.worker(server.url)
    rig.healed()
    rig.wait_until_applied(server)


def redis_frozen(rig: Rig) -> None:
    _redis_away(rig, lambda server: server.signal(signal.SIGSTOP), lambda server: server.signal(signal.SIGCONT))


def redis_refuses_connections(rig: Rig) -> None:
    _redis_away(rig, rig.kill, Server.restart)


def redis_read_only(rig: Rig) -> None:
    _redis_away(
        rig,
        lambda server: server.client.replicaof("127.0.0.1", "1"),
        lambda server: server.client.replicaof("no", "one"),
    )


def redis_out_of_memory(rig: Rig) -> None:
    _redis_away(
        rig,
        lambda server: server.client.config_set("maxmemory", "1"),
        lambda server: server.client.config_set("maxmemory", "0"),
    )


def redis_loading(rig: Rig) -> None:
    """Restarts Redis so that its keys take long to load; meanwhile it answers LOADING."""

    def restart_slowly(server: Server) -> None:
        server.client.bgrewriteaof()  # into the form of which loading can be delayed
        wait_until(lambda: not server.client.info("persistence")["aof_rewrite_in_progress"])
        rig.kill(server)
        delay = 5_000_000 // max(1, 1 + sum(len(load.accepted) for load in rig.loads))
        server.command += ["--key-load-delay", str(delay), "--loading-process-events-interval-bytes", "1024"]
        server.start()
        wait_until(lambda: _is_loading(server), what="the server to be loading")

    def wait_for_it(server: Server) -> None:
        wait_until(server.answers, 60, "the server to have loaded")

    _redis_away(rig, restart_slowly, wait_for_it)


def _is_loading(server: Server) -> bool:
    try:
        server.client.ping()
    except RedisError as error:
        return isinstance(error, BusyLoadingError)
    return False


def _redis_away(rig: Rig, leave: Callable[[Server], object], come_back: Callable[[Server], object]) -> None:
    server = rig.server()
    receiver, _ = rig.receiver(server.url), rig.worker(server.url)
    load = rig.load(receiver, idle=rig.server("idle"))
    rig.seconds_of_load(load, 1)
    leave(server)
    rig.seconds_of_load(load, rig.random.uniform(30, 60) if rig.long else rig.random.uniform(2, 4))
    come_back(server)
    rig.healed()
    rig.seconds_of_load(load, 0.5)
    rig.wait_until_applied(server)
    assert load.refused == load.unanswered == 0
    _assert_answers_are_fast(rig)
    assert receiver.text().count("is not available") <= 1 + receiver.text().count("is back"), receiver.text()


def redis_loses_its_last_second(rig: Rig) -> None:
    """Kills Redis and cuts off the end of its append-only file, as a power cut does."""
    server = rig.server()
    receiver = rig.receiver(server.url)
    load = rig.load(receiver)
    for _ in range(5 if rig.long else 2):
        rig.seconds_of_load(load, rig.random.uniform(1.5, 2.5))
        before = _append_only_file(server).stat().st_size
        rig.seconds_of_load(load, 1)
        rig.kill(server)
        path = _append_only_file(server)
        lost = path.stat().st_size - before
        assert lost > 0
        with path.open("r+b") as file:
            file.truncate(before)
        server.restart()
    wait_until(lambda: "are pushed again" in receiver.text(), what="the receiver to push again")
    rig.worker(server.url)
    rig.healed()
    rig.wait_until_applied(server)


def _append_only_file(server: Server) -> Path:
    return max(server.directory.glob("appendonlydir/*.incr.aof"), key=lambda path: path.stat().st_mtime)


def worker_killed_again_and_again(rig: Rig) -> None:
    server = rig.server()
    receiver = rig.receiver(server.url)
    workers = [rig.worker(server.url, f"worker{number}") for number in range(2)]
    load = rig.load(receiver)
    for _ in range(20 if rig.long else 6):
        rig.seconds_of_load(load, rig.random.uniform(0.2, 0.8))
        victim = rig.random.choice(workers)
        rig.kill(victim)
        victim.start()
    rig.healed()
    rig.wait_until_applied(server)


def worker_killed_at_each_step(rig: Rig) -> None:
    """Workers die at the places that are hardest to hit by chance."""
    server = rig.server()
    receiver = rig.receiver(server.url)
    rig.load(receiver, rate=50)
    script = str(Path(__file__).parent / "dying_worker.py")
    for step in ("dequeued", "prepared", "half-applied", "applied"):
        dying = rig.program([sys.executable, script, step], {"PRESENCE_REDIS_URL": server.url}, step)
        assert dying.popen.wait(30) == -signal.SIGKILL, dying.text()
        rig.report.kills += 1
    rig.worker(server.url)
    rig.healed()
    rig.wait_until_applied(server)
    lists = ("rq:queue:presence", "rq:queue:presence:intermediate")
    wait_until(lambda: _jobs(server, *lists) == 0, 30, "the queue to be empty")


def worker_killed_while_it_schedules_a_retry(rig: Rig) -> None:
    queue, presence = rig.server("queue"), rig.server("presence")
    receiver = rig.receiver(presence.url, queue_url=queue.url)
    load = rig.load(receiver, rate=50)
    rig.kill(presence)
    script = str(Path(__file__).parent / "dying_worker.py")
    environment = {"PRESENCE_REDIS_URL": presence.url, "PRESENCE_QUEUE_URL": queue.url}
    dying = rig.program([sys.executable, script, "scheduling"], environment, "scheduling")
    assert dying.popen.wait(30) == -signal.SIGKILL, dying.text()
    rig.report.kills += 1
    load.stop()
    presence.restart()
    rig.worker(presence.url, queue_url=queue.url)
    rig.healed()
    rig.wait_until_applied(presence)


def _jobs(server: Server, *lists: str) -> int:
    return sum(server.client.llen(key) for key in lists) + server.client.zcard("rq:wip:presence")


def worker_frozen(rig: Rig) -> None:
    server = rig.server()
    receiver = rig.receiver(server.url)
    frozen = rig.worker(server.url, "frozen")
    load = rig.load(receiver)
    rig.seconds_of_load(load, 1)
    frozen.signal(signal.SIGSTOP)
    rig.seconds_of_load(load, 1)
    rig.worker(server.url)
    rig.healed()
    rig.wait_until_applied(server)
    frozen.signal(signal.SIGCONT)  # and does its job again, which changes nothing
    rig.wait_until_applied(server)


def presence_away_under_a_job(rig: Rig) -> None:
    """Presence is on a server of its own, which goes away and comes back; the queue's server stays."""
    queue, presence = rig.server("queue"), rig.server("presence")
    receiver = rig.receiver(presence.url, queue_url=queue.url)
    worker = rig.worker(presence.url, queue_url=queue.url)
    load = rig.load(receiver)
    rig.seconds_of_load(load, 1)
    rig.kill(presence)
    rig.seconds_of_load(load, 20 if rig.long else 5)
    presence.restart()
    rig.healed()
    rig.wait_until_applied(presence)
    assert "Traceback" not in worker.text()
    assert queue.client.zcard("rq:failed:presence") == 0


def one_event_can_never_be_applied(rig: Rig) -> None:
    server = rig.server()
    receiver = rig.receiver(server.url)
    server.client.set("presence:u0-7", "not a hash")
    rig.worker(server.url)
    load = rig.load(receiver)
    rig.seconds_of_load(load, 1)
    load.stop()
    assert load.accepted.pop("u0-7")
    rig.healed()
    rig.wait_until_applied(server)
    if rig.long:  # after 2 + 10 + 30 + 60 seconds' pauses
        wait_until(lambda: server.client.zcard("rq:failed:presence") == 1, 150, "the event to be given up")
    else:
        wait_until(lambda: server.client.zcard("rq:scheduled:presence") == 1, what="the event to be alone")


def receiver_told_to_stop(rig: Rig) -> None:
    server = rig.server()
    receiver, _ = rig.receiver(server.url), rig.worker(server.url)
    load = rig.load(receiver)
    rig.seconds_of_load(load, rig.random.uniform(0.5, 1.5))
    assert receiver.stop() == 0
    rig.healed()
    rig.wait_until_applied(server)
    # With Redis away it stops as well, and leaves the rest to the next.
    receiver.start()
    receiver.wait()
    server.signal(signal.SIGSTOP)
    load = rig.load(receiver)
    rig.seconds_of_load(load, 1)
    began = time.monotonic()
    assert receiver.stop() == 0
    assert time.monotonic() - began < 10
    server.signal(signal.SIGCONT)
    receiver.start()
    receiver.wait()
    rig.healed()
    rig.wait_until_applied(server)


def worker_told_to_stop(rig: Rig) -> None:
    server = rig.server()
    receiver = rig.receiver(server.url)
    load = rig.load(receiver)
    for number in range(8 if rig.long else 3):
        worker = rig.worker(server.url, f"worker{number}")
        wait_until(lambda worker=worker: "working on" in worker.text())
        rig.seconds_of_load(load, rig.random.uniform(0.5, 1.5))
        assert worker.stop() == 0
        assert _jobs(server, "rq:queue:presence:intermediate") == 0  # nothing half done
    rig.worker(server.url)
    rig.healed()
    rig.wait_until_applied(server)


def journal_at_its_limit(rig: Rig) -> None:
    server = rig.server()
    server.kill()
    receiver = rig.receiver(server.url, journal_max_bytes="100000")
    load = rig.load(receiver)
    wait_until(lambda: load.refused > 50)
    status, state = receiver.readiness()
    assert (status, state["journal_bytes"] <= 100000) == (503, True)
    server.restart()
    rig.worker(server.url)
    accepted = len(load.accepted)
    wait_until(lambda: len(load.accepted) > accepted + 50)
    rig.healed()
    rig.wait_until_applied(server)
    assert receiver.readiness()[0] == 200


def journal_file_damaged(rig: Rig) -> None:
    server = rig.server()
    server.kill()
    receiver = rig.receiver(server.url)
    load = rig.load(receiver)
    rig.seconds_of_load(load, 1)
    load.stop()
    rig.kill(receiver)
    (path,) = (rig.directory / "journal").rglob("*.log")
    data = bytearray(path.read_bytes())
    at = rig.random.randrange(len(data) // 4, len(data) // 2)
    hit = bytes(data[data.rindex(b"\n", 0, at) + 1 : data.index(b"\n", at + 20)])
    data[at : at + 20] = b"\0" * 20
    path.write_bytes(data)
    for user in [user for user in load.accepted if f'"{user}"'.encode() in hit]:
        del load.accepted[user]
    server.restart()
    rig.worker(server.url)
    receiver.start()
    receiver.wait()
    rig.healed()
    rig.wait_until_applied(server)
    wait_until(lambda: receiver.readiness()[1]["damaged_files"] == 1)
    wait_until(lambda: "set aside as" in receiver.text())


def backlog_of_a_long_outage(rig: Rig) -> None:
    """Checks answers and memory while the journal grows, and while it is read back beside new events."""
    server = rig.server()
    server.kill()
    receiver = rig.receiver(server.url)
    _fill(rig, receiver.directory.parent / "journal", 1_000_000 if rig.long else 50_000)
    load = rig.load(receiver, idle=rig.server("idle"))
    rig.seconds_of_load(load, 2)
    wait_until(lambda: receiver.readiness()[1]["journal_events"] > 50_000)
    rig.worker(server.url)
    server.restart()
    rig.healed()
    rig.seconds_of_load(load, 2)
    rig.wait_until_applied(server, within=600 if rig.long else 60)
    wait_until(lambda: receiver.readiness()[1]["journal_events"] == 0)
    assert load.refused == load.unanswered == 0
    _assert_answers_are_fast(rig)
    peak = next(
        int(line.split()[1])
        for line in Path(f"/proc/{receiver.popen.pid}/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    assert peak < 120_000, f"{peak} KiB"


def _fill(rig: Rig, journal: Path, events: int) -> None:
    """Writes the journal of a receiver that is gone, as large as it gets if Redis is away for hours."""
    from receiver.journal.journal import Journal
    from shared.events import Event, encode

    left = Journal(journal, 1 << 40)
    for number in range(events):
        event = Event(
            f"old{number % 1000}",
            "callbackAfterUserOfflineCommand",
            number,
            "",
            1,
            "IOS",
            f"op-{number}",
            number,
        )
        left.append(encode(event))
    assert left._writer.folder is not None
    left._writer.folder.release()


SCENARIOS: tuple[Scenario, ...] = (
    redis_frozen,
    redis_refuses_connections,
    redis_read_only,
    redis_out_of_memory,
    redis_loading,
    backlog_of_a_long_outage,
    receiver_killed_again_and_again,
    receiver_never_comes_back,
    redis_absent_at_the_start,
    redis_loses_its_last_second,
    worker_killed_again_and_again,
    worker_killed_at_each_step,
    worker_killed_while_it_schedules_a_retry,
    worker_frozen,
    presence_away_under_a_job,
    one_event_can_never_be_applied,
    receiver_told_to_stop,
    worker_told_to_stop,
    journal_at_its_limit,
    journal_file_damaged,
)
