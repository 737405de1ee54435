"""How fast one worker applies a full queue: `python bench/apply.py`.

It is compared with one RQ job for each event, which writes the same hash with HSET and nothing else, on RQ's
SimpleWorker; and with the raw limit: a bare redis-py loop that calls the same function through pipelines of 1,000,
without RQ and validation. Then users come and go, in batches as OpenIM 3.8.2 and later sends them, through a worker and
through its store alone; the store also gets these callbacks without operationIDs, so that each is a batch of its own.
Then users have connections, as up to OpenIM 3.7. At the end: a worker's memory, and what one user and one entry of the
stream cost Redis. bench/store.py measures what each kind of user costs the server.
"""

import functools
import random
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

from redis import Redis
from rig import Receiver, Server, Worker, applied, bench, resident_mb, row, wait_until
from rq import Queue
from rq.serializers import JSONSerializer
from store import connection_comes_and_goes

from receiver.relay.relay import BATCH_EVENTS
from shared.cli import churn
from shared.events import Event, encode
from shared.queue import enqueue_encoded, open_queue
from shared.redis.client import connect
from shared.settings import Settings
from worker.store.store import CALL_EVENTS, Store, groups

ROUNDS = 5
EVENTS = 60_000
SINGLE_JOBS = 400
MEMORY_EVENTS = 300_000


def events(count: int, first: int = 0) -> list[Event]:
    command, seq = "callbackAfterUserOfflineCommand", 1732345678901
    return [
        Event(f"user{n}", command, seq + n, "", 2, "Android", f"{seq + n}-user{n}", seq + n)  # type: ignore[arg-type]
        for n in range(first, first + count)
    ]


def churned(users: int = EVENTS // 5) -> list[Event]:
    """The callbacks of users who come and go, about five each."""
    found: list[Event] = []
    for seq, batch in enumerate(churn.batches((f"user{n}" for n in range(users)), random.Random(1)), 1732345678901):
        for step, user_id, platform, operation_id in batch:
            command, event_id = f"callbackAfterUser{step}Command", f"{len(found):x}"
            found.append(Event(user_id, command, seq, "", platform, "", operation_id, seq, event_id))  # type: ignore[arg-type]
    return found


def by_worker_with_connections(server: Server, directory: Path, users: int = 5000) -> float:
    """Events/s, of users as in OpenIM up to 3.7: each has 32 remembered closed connections, and others come and go."""
    server.client.flushall()
    lives = [connection_comes_and_goes(f"user{n}") for n in range(users)]
    store = Store(connect(server.url), Settings())
    store.prepare()
    for life in lives:
        store.apply(list(islice(life, 68)))
    return by_worker(server, directory, [next(life) for _ in range(EVENTS // users) for life in lives])


def by_store(server: Server, batch: list[Event]) -> float:
    """Events/s that the store alone applies, in steps as large as a job."""
    server.client.flushall()
    store = Store(connect(server.url), Settings())
    store.prepare()
    started = time.perf_counter()
    for start in range(0, len(batch), BATCH_EVENTS):
        store.apply(batch[start : start + BATCH_EVENTS])
    return len(batch) / (time.perf_counter() - started)


def fill(client: Redis, batch: list[Event]) -> None:
    queue = open_queue(client, Settings())
    for start in range(0, len(batch), BATCH_EVENTS):
        enqueue_encoded(queue, [encode(event) for event in batch[start : start + BATCH_EVENTS]], 0)


def by_worker(server: Server, directory: Path, batch: list[Event], **settings: str) -> float:
    """Events/s that a worker with these settings applies to presence as it is.

    They are counted from the end of its first job, because RQ looks only once a second whether it is still suspended.
    """
    before = applied(server)
    fill(server.client, batch)
    server.client.set("rq:suspended", 1)  # so that the worker's own start is not counted
    worker = Worker(directory, server.url, **settings)
    wait_until(lambda: server.client.scard("rq:workers") == 1)
    time.sleep(1.5)
    server.client.delete("rq:suspended")
    wait_until(lambda: applied(server) > before)
    started, first = time.perf_counter(), applied(server)
    wait_until(lambda: applied(server) == before + len(batch), 120)
    elapsed = time.perf_counter() - started
    assert worker.stop() == 0
    return (before + len(batch) - first) / elapsed


def by_bare_loop(server: Server) -> float:
    server.client.flushall()
    client = connect(server.url)
    store, batch = Store(client, Settings()), events(EVENTS)
    store.prepare()
    started = time.perf_counter()
    for start in range(0, EVENTS, 1000):
        pipeline, some = client.pipeline(transaction=False), batch[start : start + 1000]
        for group in groups(some, CALL_EVENTS):
            pipeline.execute_command(*store.command(some, group, 0))
        pipeline.execute()
    return EVENTS / (time.perf_counter() - started)


def write_hash(user_id: str, fields: dict[str, str]) -> None:
    """The job of the baseline."""
    _baseline().hset(f"presence:{user_id}", mapping=fields)


@functools.cache
def _baseline() -> Redis:
    return connect(sys.argv[1])


def by_single_jobs(server: Server, directory: Path) -> float:
    server.client.flushall()
    queue = Queue("single", connection=server.client, serializer=JSONSerializer)
    for event in events(SINGLE_JOBS):
        fields = {name: str(value) for name, value in event._asdict().items()} | {"status": "offline"}
        queue.enqueue("apply.write_hash", event.user_id, fields, result_ttl=0)
    command = [sys.executable, str(Path(__file__)), server.url]
    took = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout
    assert server.client.hget(f"presence:user{SINGLE_JOBS - 1}", "status") == b"offline"
    return SINGLE_JOBS / float(took)


def run_single_jobs() -> None:
    """Runs as a process of its own: `apply.py URL`."""
    from rq import SimpleWorker

    client = Redis.from_url(sys.argv[1])
    worker = SimpleWorker([Queue("single", connection=client, serializer=JSONSerializer)], connection=client)
    worker.serializer = JSONSerializer
    started = time.perf_counter()
    worker.work(burst=True, logging_level="CRITICAL")
    print(time.perf_counter() - started)


def memory(server: Server, directory: Path) -> None:
    server.client.flushall()
    before = server.client.info("memory")["used_memory"]
    receiver, worker = Receiver(directory / "memory", server.url), Worker(directory, server.url)
    try:
        from load import drive

        result = drive(receiver.port, 32, 600, most=MEMORY_EVENTS)
        assert result.accepted == MEMORY_EVENTS
        wait_until(lambda: applied(server) >= MEMORY_EVENTS, 120)
        megabytes = f"receiver {resident_mb(receiver):.0f} MB, worker {resident_mb(worker):.0f} MB"
        print(f"after {MEMORY_EVENTS} events: {megabytes}")
    finally:
        receiver.kill()
        worker.kill()
    one = server.client.memory_usage("presence:user1", samples=0)
    entry = server.client.memory_usage("presence-changes", samples=0) / server.client.xlen("presence-changes")
    server.client.delete("presence-changes")
    everything = (server.client.info("memory")["used_memory"] - before) / MEMORY_EVENTS
    print(f"one user known only as offline: {one} bytes in its hash, {everything:.0f} in the whole server")
    print(f"one entry of the stream: {entry:.0f} bytes")


def main() -> None:
    with bench() as (directory, programs):
        server = Server(directory / "redis", appendonly="no")
        programs.append(server)
        ours, raw, single, coming, batched, unbatched, connected = [], [], [], [], [], [], []
        come_and_go = churned()
        each_by_itself = [event._replace(operation_id="") for event in come_and_go]
        for _ in range(ROUNDS):
            single.append(by_single_jobs(server, directory))
            raw.append(by_bare_loop(server))
            server.client.flushall()
            ours.append(by_worker(server, directory, events(EVENTS)))
            server.client.flushall()
            coming.append(by_worker(server, directory, come_and_go))
            unbatched.append(by_store(server, each_by_itself))
            batched.append(by_store(server, come_and_go))
            connected.append(by_worker_with_connections(server, directory))
        row("one RQ job an event", single, "/s")
        row("bare pipeline of the same function", raw, "/s")
        row("one worker", ours, "/s", raw)
        row("one worker, against one job an event", ours, "/s", single)
        row("one worker, users who come and go", coming, "/s", ours)
        row("one worker, users with connections", connected, "/s", ours)
        row("store, users who come and go, no batches", unbatched, "/s")
        row("store, users who come and go", batched, "/s", unbatched)
        memory(server, directory)


if __name__ == "__main__":
    run_single_jobs() if len(sys.argv) > 1 else main()
