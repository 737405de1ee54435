"""What ten people who watch the page cost OpenIM: an answer's p99 with and without them, `python bench/page.py`."""

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from load import drive
from rig import Receiver, Server, Worker, bench, row, wait_until

ROUNDS = 9
SECONDS = 4.0
WATCHERS = 10


@contextmanager
def watched(port: int) -> Iterator[None]:
    """Keeps streams open, and reads them."""
    connections = [http.client.HTTPConnection("127.0.0.1", port, timeout=30) for _ in range(WATCHERS)]

    def read(connection: http.client.HTTPConnection) -> None:
        connection.request("GET", "/api/stream")
        answer = connection.getresponse()
        assert answer.status == 200
        try:
            while answer.read1(65536):
                pass
        except (OSError, ValueError, AttributeError, http.client.HTTPException):
            return  # closed below

    threads = [threading.Thread(target=read, args=(each,), daemon=True) for each in connections]
    for thread in threads:
        thread.start()
    yield
    for connection in connections:
        if connection.sock:
            connection.sock.shutdown(2)
        connection.close()
    for thread in threads:
        thread.join(5)


def main() -> None:
    with bench() as (directory, programs):
        server = Server(directory / "redis")
        receiver = Receiver(directory, server.url)
        programs += [server, receiver, Worker(directory, server.url)]
        accepted = 0
        alone: list[float] = []
        beside: list[float] = []

        def p99() -> float:
            nonlocal accepted
            result = drive(receiver.port, 2, SECONDS, 1000, first=accepted)
            assert result.accepted == result.answers
            accepted += result.accepted
            wait_until(lambda: receiver.readiness()[1]["journal_events"] == 0, 60)
            return result.percentile_ms(99)

        p99()  # warm up
        for _ in range(ROUNDS):
            alone.append(p99())
            with watched(receiver.admin_port):
                beside.append(p99())
        row("p99 at 1,000/s, nobody watches", alone, "ms")
        row(f"p99 at 1,000/s, {WATCHERS} watch", beside, "ms", alone)


if __name__ == "__main__":
    main()
