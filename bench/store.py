"""What one event costs the server, by what is remembered of its user: `python bench/store.py [CHECKOUT]`.

CHECKOUT: another checkout of this repository, to compare with in alternating rounds on one server, each by a process
of its own. The microseconds are the server's own for FCALL, from `INFO commandstats`. One ratio compares with a
platform that comes and goes, the other compares the other checkout with this one. Below each are the bytes of such a
user's hash.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

from rig import Server, bench, row

from shared.events import Event
from shared.redis.client import connect
from shared.settings import Settings
from worker.store.store import Outcome, Store

ROUNDS = 7
USERS = 50
EVENTS = 48
LEASE_SECONDS = 1800
ON, OFF = "callbackUserOnlineCommand", "callbackUserOfflineCommand"
START_MS = 1732345678901

#: The endless events of a user with this id.
Life = Callable[[str], Iterator[Event]]


def _event(user: str, command: str, n: int, conn_id: str = "", platform: int = 2) -> Event:
    seq = START_MS + 20_000 * n
    return Event(user, command, seq, conn_id, platform, "Android", f"p_17_{n}", seq + 20, f"{n:08x}")  # type: ignore[arg-type]


def _connection(user: str, n: int) -> str:
    """A connection id as OpenIM makes it: an MD5 in hexadecimal."""
    return f"{hash((user, n)) & (2**64 - 1):016x}{n:016x}"


def platform_goes(user: str) -> Iterator[Event]:
    return (_event(user, OFF, n) for n in count())


def platform_is_renewed(user: str) -> Iterator[Event]:
    return (_event(user, ON, n) for n in count())


def platform_comes_and_goes(user: str) -> Iterator[Event]:
    return (_event(user, OFF if n % 2 else ON, n) for n in count())


def connection_comes_and_goes(user: str) -> Iterator[Event]:
    return (_event(user, OFF if n % 2 else ON, n, _connection(user, n // 2)) for n in count())


def unknown_connection_goes(user: str) -> Iterator[Event]:
    return (_event(user, OFF, n, _connection(user, n)) for n in count())


def _after_connections(user: str, closed: int, online: int, then: Callable[[int], Event]) -> Iterator[Event]:
    for n in range(2 * closed):
        yield _event(user, OFF if n % 2 else ON, n, _connection(user, n // 2))
    for n in range(2 * closed, 2 * closed + online):
        yield _event(user, ON, n, _connection(user, n), 1 + n % 2)
    yield from map(then, count(2 * closed + online))


def platform_after_connections(user: str) -> Iterator[Event]:
    """A user from before OpenIM was upgraded to 3.8.2 or later."""
    return _after_connections(user, 40, 0, lambda n: _event(user, OFF if n % 2 else ON, n))


def one_of_many_comes_and_goes(user: str) -> Iterator[Event]:
    return _after_connections(
        user, 40, 256, lambda n: _event(user, OFF if n % 2 else ON, n, _connection(user, n // 2 * 2))
    )


def one_more_of_many_comes(user: str) -> Iterator[Event]:
    return _after_connections(user, 40, 256, lambda n: _event(user, ON, n, _connection(user, n)))


USUAL = "a platform comes and goes"
LIVES: dict[str, tuple[Life, int]] = {
    USUAL: (platform_comes_and_goes, 8),
    "a platform's first offline event": (platform_goes, 0),
    "a platform renewed": (platform_is_renewed, 8),
    "a platform renewed, leases on": (platform_is_renewed, 8),
    "a connection comes and goes, 32 closed": (connection_comes_and_goes, 80),
    "a connection goes, 32 closed": (unknown_connection_goes, 40),
    "a platform comes and goes, 32 closed": (platform_after_connections, 84),
    "one more than 256 comes and goes, 32 closed": (one_of_many_comes_and_goes, 336),
    "one more than 256 comes, 32 closed": (one_more_of_many_comes, 336),
}


class Checkout:
    """Measures in a process of its own, which runs that checkout's code."""

    def __init__(self, root: Path, server: Server) -> None:
        command = [sys.executable, str(Path(__file__).absolute()), "measure", server.url]
        environment = {**os.environ, "PYTHONPATH": str(root)}
        self.process = subprocess.Popen(
            command, cwd=root, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def microseconds(self, title: str) -> float:
        """The server's microseconds for one event."""
        assert self.process.stdin and self.process.stdout
        print(title, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())


def measure(url: str) -> None:
    """As a process of its own: `store.py measure URL`, which reads titles and prints microseconds."""
    client = connect(url)
    for line in sys.stdin:
        life, before = LIVES[title := line.strip()]
        client.flushall()
        store = Store(client, Settings(online_lease_seconds=LEASE_SECONDS if title.endswith("leases on") else 0))
        store.prepare()
        users = [life(f"user{n}") for n in range(USERS)]
        for _ in range(before):
            store.apply([next(user) for user in users])
        client.config_resetstat()
        measured = EVENTS if before else 1  # a first event is the first once
        for _ in range(measured):
            results = store.apply([next(user) for user in users])
            assert all(isinstance(each, Outcome) and each.name == "applied" for each in results), results
        print(client.info("commandstats")["cmdstat_fcall"]["usec"] / (measured * USERS), flush=True)


def main() -> None:
    roots = [Path(__file__).parent.parent, *(Path(each) for each in sys.argv[1:])]
    found: dict[str, list[list[float]]] = {title: [[] for _ in roots] for title in LIVES}
    sizes: dict[str, int] = {}
    with bench() as (directory, programs):
        server = Server(directory / "redis", appendonly="no")
        programs.append(server)
        checkouts = [Checkout(root.absolute(), server) for root in roots]
        for _ in range(ROUNDS):
            for title in LIVES:
                for checkout, values in reversed(list(zip(checkouts, found[title], strict=True))):  # this one last
                    values.append(checkout.microseconds(title))
                sizes[title] = server.client.memory_usage("presence:user1", samples=0)
        for checkout in checkouts:
            checkout.process.kill()
        for title, (ours, *others) in found.items():
            row(title, ours, "µs", found[USUAL][0])
            for other in others:
                row("  in the other checkout", other, "µs", ours)
            print(f"  {sizes[title]:,} bytes")


if __name__ == "__main__":
    measure(sys.argv[2]) if sys.argv[1:2] == ["measure"] else main()
