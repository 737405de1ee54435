"""What leases cost one worker, and what a renewal does: `python bench/leases.py`.

60,000 users come online from a full queue, with leases off and on; then each is renewed, which is most of the traffic
of OpenIM 3.8.2 and later. At the end, the bytes of a user with three sessions.
"""

import time

from apply import by_worker
from rig import Server, bench, row

from shared.events import Event

ROUNDS = 5
USERS = 60_000
LEASE = {"ONLINE_LEASE_SECONDS": "1800"}


def online(renewal: int = 0) -> list[Event]:
    """An online event of each user, as v3.8 sends it; renewals come ten minutes apart."""
    command, seq = "callbackAfterUserOnlineCommand", time.time_ns() // 1_000_000 + 600_000 * renewal
    return [
        Event(f"user{n}", command, seq + n, "", 2, "Android", f"{seq + n}-user{n}", seq + n)  # type: ignore[arg-type]
        for n in range(USERS)
    ]


def main() -> None:
    with bench() as (directory, programs):
        server = Server(directory / "redis", appendonly="no")
        programs.append(server)
        off, on, renewals = [], [], []
        for _ in range(ROUNDS):
            server.client.flushall()
            off.append(by_worker(server, directory, online()))
            server.client.flushall()
            on.append(by_worker(server, directory, online(), **LEASE))
            renewals.append(by_worker(server, directory, online(1), **LEASE))
            assert server.client.zcard("presence-leases") == USERS
            assert server.client.hget("presence-stats", "users_online") == b"%d" % USERS
            assert server.client.xlen("presence-changes") == USERS
        row("first online events, leases off", off, "/s")
        row("first online events, leases on", on, "/s", off)
        row("renewals, leases on", renewals, "/s", on)
        for platform in (1, 3):
            event = online()[0]._replace(platform_id=platform, seq=event_seq(server))
            by_worker(server, directory, [event], **LEASE)
        print(f"a user with three sessions: {server.client.memory_usage('presence:user0', samples=0)} bytes")
        assert server.client.hget("presence:user0", "sessions") == b"3"


def event_seq(server: Server) -> int:
    return int(server.client.hget("presence:user0", "seq") or 0) + 1


if __name__ == "__main__":
    main()
