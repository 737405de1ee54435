"""A gateway restarts: 100,000 users online, then all offline from 8 gateways of 2 connections, two workers.

`python bench/storm.py` prints how long it takes until the last user is offline, and the peak of memory. Before that, it
prints how fast users can come and go as phones do: in and out within a second, replaced, kicked and moved.
"""

import time

from load import drive
from rig import Receiver, Server, Worker, applied, bench, resident_mb, wait_until

from shared.cli import churn

USERS = 100_000


def come_and_go(server: Server, receiver: Receiver) -> None:
    started = time.perf_counter()
    result = drive(receiver.port, 4, 600, most=USERS // 5, step="Session")
    assert result.accepted == churn.count(USERS // 5)
    wait_until(lambda: applied(server) == result.accepted, 300)
    elapsed = time.perf_counter() - started
    assert server.client.hget("presence-stats", "users_online") == b"0"
    print(
        f"{result.accepted} callbacks of {USERS // 5} users who come and go: "
        f"{result.accepted / elapsed:.0f}/s applied, answers p99 {result.percentile_ms(99):.1f} ms"
    )


def main() -> None:
    with bench() as (directory, programs):
        server = Server(directory / "redis")
        receiver = Receiver(directory, server.url)
        workers = [Worker(directory, server.url, f"worker{number}") for number in range(2)]
        programs += [server, receiver, *workers]
        come_and_go(server, receiver)
        server.client.flushall()
        online = drive(receiver.port, 16, 600, most=USERS, step="Online")
        assert online.accepted == USERS
        wait_until(lambda: applied(server) == USERS, 300)
        started = time.perf_counter()
        offline = drive(receiver.port, 16, 600, most=USERS)
        assert offline.accepted == USERS
        accepted_in = time.perf_counter() - started
        wait_until(lambda: applied(server) == 2 * USERS, 300)
        print(f"{USERS} offline callbacks accepted in {accepted_in:.1f} s, p99 {offline.percentile_ms(99):.1f} ms")
        print(f"the last user was offline after {time.perf_counter() - started:.1f} s")
        assert server.client.xlen("presence-changes") == 2 * USERS
        pipeline = server.client.pipeline(transaction=False)
        for number in range(1, USERS + 1):
            pipeline.hget(f"presence:user{number}", "status")
        assert set(pipeline.execute()) == {b"offline"}
        peaks = [
            f"{name} {resident_mb(program, peak=True):.0f} MB"
            for name, program in (
                ("receiver", receiver),
                ("worker", workers[0]),
                ("worker", workers[1]),
                ("server", server),
            )
        ]
        print(f"memory at the peak: {', '.join(peaks)}")


if __name__ == "__main__":
    main()
