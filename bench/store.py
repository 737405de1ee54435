"""What one event costs the server, by what is remembered of its user: `python bench/store.py [CHECKOUT]`.

CHECKOUT: another checkout of this repository, to compare with in alternating rounds on one server. The microseconds
are the server's own for FCALL, from `INFO commandstats`. One ratio compares with a platform that comes and goes, the
other compares the other checkout with this one. Below each are the bytes of such a user's hash.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

from rig import Server, bench, row

from shared.events import Event
from shared.redis.client import connect
from shared.settings import Settings
from worker.store import library
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


class Release:
    """The functions of a checkout. name, source: as in worker/store/library.py."""

    def __init__(self, checkout: Path) -> None:
        code = "from worker.store import library; print(library.NAME); print(library.SOURCE)"
        command = [sys.executable, "-c", code]
        text = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True).stdout
        self.name, _, self.source = text.partition("\n")

    def microseconds(self, server: Server, life: Life, before: int, settings: Settings) -> float:
        """The server's microseconds for one event."""
        library.NAME, library.SOURCE = self.name, self.source
        server.client.flushall()
        store = Store(connect(server.url), settings)
        store.prepare()
        users = [life(f"user{n}") for n in range(USERS)]
        for _ in range(before):
            store.apply([next(user) for user in users])
        server.client.config_resetstat()
        measured = EVENTS if before else 1  # a first event is the first once
        for _ in range(measured):
            results = store.apply([next(user) for user in users])
            assert all(isinstance(each, Outcome) and each.name == "applied" for each in results), results
        stats = server.client.info("commandstats")["cmdstat_fcall"]
        assert stats["calls"] == measured * USERS
        return float(stats["usec"]) / stats["calls"]


def main() -> None:
    releases = [Release(Path(__file__).parent.parent), *(Release(Path(each)) for each in sys.argv[1:])]
    found: dict[str, list[list[float]]] = {title: [[] for _ in releases] for title in LIVES}
    sizes: dict[str, int] = {}
    with bench() as (directory, programs):
        server = Server(directory / "redis", appendonly="no")
        programs.append(server)
        for _ in range(ROUNDS):
            for title, (life, before) in LIVES.items():
                settings = Settings(online_lease_seconds=LEASE_SECONDS if title.endswith("leases on") else 0)
                for release, values in reversed(list(zip(releases, found[title], strict=True))):  # this one last
                    values.append(release.microseconds(server, life, before, settings))
                sizes[title] = server.client.memory_usage("presence:user1", samples=0)
        for title, (ours, *others) in found.items():
            row(title, ours, "µs", found[USUAL][0])
            for other in others:
                row("  in the other checkout", other, "µs", ours)
            print(f"  {sizes[title]:,} bytes")


if __name__ == "__main__":
    main()
