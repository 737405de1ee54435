"""From the request to visible presence, on an idle system and at 1,000 events/s: `python bench/latency.py`."""

import time

from load import drive
from rig import Receiver, Server, Worker, bench, row, wait_until

EVENTS = 300
PAUSE_SECONDS = 0.05
LOAD_SECONDS = 10


def main() -> None:
    with bench() as (directory, programs):
        server = Server(directory / "redis")
        receiver, worker = Receiver(directory, server.url), Worker(directory, server.url)
        programs += [server, receiver, worker]
        wait_until(lambda: server.client.scard("rq:workers") == 1)
        milliseconds = []
        for number in range(1, EVENTS + 1):
            time.sleep(PAUSE_SECONDS)
            started = time.perf_counter()
            assert drive(receiver.port, 1, 5, first=number - 1, most=1).accepted == 1
            while not server.client.exists(f"presence:user{number}"):
                time.sleep(0.0005)
            milliseconds.append((time.perf_counter() - started) * 1000)
        show("idle: request to visible presence", milliseconds)

        result = drive(receiver.port, 2, LOAD_SECONDS, 1000, first=EVENTS)
        total = EVENTS + result.accepted
        wait_until(lambda: server.client.xlen("presence-changes") == total)
        changes = server.client.xrange("presence-changes")[EVENTS:]
        # An entry's id begins with the time at which it was written.
        show(
            "1,000/s: receipt to visible presence",
            [int(key.partition(b"-")[0]) - int(fields[b"changed_at"]) for key, fields in changes],
        )


def show(name: str, milliseconds: list[float]) -> None:
    ordered = sorted(milliseconds)
    row(name, ordered, "ms")
    print(f"  p90 {ordered[len(ordered) * 90 // 100]:.0f} ms, p99 {ordered[len(ordered) * 99 // 100]:.0f} ms")


if __name__ == "__main__":
    main()
