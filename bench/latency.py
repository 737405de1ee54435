"""From the request to visible presence, on an idle system: `python bench/latency.py`."""

import time

from load import drive
from rig import Receiver, Server, Worker, bench, row, wait_until

EVENTS = 300
PAUSE_SECONDS = 0.05


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
        milliseconds.sort()
        row("request to visible presence", milliseconds, "ms")
        print(f"p90 {milliseconds[EVENTS * 90 // 100]:.1f} ms, p99 {milliseconds[EVENTS * 99 // 100]:.1f} ms")


if __name__ == "__main__":
    main()
