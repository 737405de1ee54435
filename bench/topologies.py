"""How many events/s one worker's store applies behind Sentinels and on a Cluster, compared with one Redis.

Rounds alternate; each has one online event of each of EVENTS new users, then a renewal of each. All servers (one
Redis; a primary, a replica and three Sentinels; three primaries with a replica each) share the machine with the
worker: `python bench/topologies.py`.
"""

import time

from redis import Redis
from rig import Server, bench, row
from topology import ClusterServers, Watched

import openim_presence as presence
from shared.events import Event
from shared.redis.client import connect
from shared.settings import load
from worker.store.store import Store

EVENTS = 10_000
ROUNDS = 5


def measure(client: Redis, url: str, number: int) -> tuple[float, float]:
    """Events/s, of the first events of users and of renewals."""
    store = Store(client, load({"PRESENCE_REDIS_URL": url, "PRESENCE_QUEUE_URL": "redis://elsewhere"}))
    store.prepare()
    first = [Event(f"{number}-{n}", "callbackUserOnlineCommand", 1, "", 1, "IOS", "op", 1000) for n in range(EVENTS)]
    rates = []
    for events in (first, [event._replace(seq=2) for event in first]):
        started_at = time.perf_counter()
        store.apply(events)
        rates.append(EVENTS / (time.perf_counter() - started_at))
    found = presence.read(client, (event.user_id for event in first))
    assert all((user.status, user.seq) == ("online", "2") for user in found)
    return rates[0], rates[1]


def main() -> None:
    with bench() as (directory, programs):
        single = Server(directory / "single", appendonly="no")
        programs.append(single)
        several = [Watched(directory / "watched"), ClusterServers(directory / "cluster")]
        servers = {"one Redis": single.url, "behind Sentinels": several[0].url, "a Cluster": several[1].url}
        try:
            clients = {name: connect(url) for name, url in servers.items()}
            runs = [{name: measure(clients[name], servers[name], n) for name in servers} for n in range(ROUNDS)]
        finally:
            for each in several:
                each.kill()
    for kind, what in enumerate(("first events", "renewals")):
        for name in servers:
            row(f"{what}, {name}", [run[name][kind] for run in runs], "/s", [run["one Redis"][kind] for run in runs])


if __name__ == "__main__":
    main()
