"""What it costs to accept a callback, compared with a bare aiohttp that does nothing: `python bench/accept.py`.

One receiver with everything on, a Redis that it relays to, and this generator, all on this machine. At the end a
worker applies all events, and none may be missing.
"""

from load import Result, drive
from rig import Bare, Receiver, Server, Worker, applied, bench, row, wait_until

ROUNDS = 7
SECONDS = 3.0


def main() -> None:
    with bench() as (directory, programs):
        server = Server(directory / "redis")
        receiver = Receiver(directory, server.url)
        bare = Bare(directory)
        programs += [server, receiver, bare]
        accepted = 0

        def both(connections: int, rate: float = 0) -> tuple[Result, Result]:
            nonlocal accepted
            baseline = drive(bare.port, connections, SECONDS, rate)
            ours = drive(receiver.port, connections, SECONDS, rate, first=accepted)
            assert ours.accepted == ours.answers
            accepted += ours.accepted
            wait_until(lambda: receiver.readiness()[1]["journal_events"] == 0, 60)
            return baseline, ours

        both(32)  # warm up
        for connections in (32, 2):
            results = [both(connections) for _ in range(ROUNDS)]
            bare_rates = [baseline.rate for baseline, _ in results]
            row(f"bare aiohttp, {connections} connections", bare_rates, "/s")
            row(f"accepted, {connections} connections", [ours.rate for _, ours in results], "/s", bare_rates)
        results = [both(2, rate=1000) for _ in range(ROUNDS)]
        for percent in (50, 99):
            bare_ms = [baseline.percentile_ms(percent) for baseline, _ in results]
            row(f"bare aiohttp, p{percent} at 1,000/s", bare_ms, "ms")
            row(
                f"accepted, p{percent} at 1,000/s",
                [r.percentile_ms(percent) for _, r in results],
                "ms",
                bare_ms,
            )

        programs.append(Worker(directory, server.url))
        wait_until(lambda: applied(server) >= accepted, 300, "every accepted event to be applied")
        assert server.client.dbsize() > accepted
        print(f"{accepted} events accepted, all applied")


if __name__ == "__main__":
    main()
