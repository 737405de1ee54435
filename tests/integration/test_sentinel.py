"""Queue and presence behind Sentinels: the primary is killed or frozen while events flow, and nothing is lost."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from redis import Redis
from redis.sentinel import MasterNotFoundError
from support import Process, Receiver, Worker, free_port, wait_until
from topology import Flips, Watched, changes

from shared.errors import Unavailable
from shared.events import Event
from shared.redis.client import connect, is_outage, refresh_primary
from shared.settings import load
from worker.store.store import Store

Keep = Callable[[Process], Process]


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    watched = Watched(tmp_path)
    yield watched
    watched.kill()


@pytest.fixture
def flips(watched: Watched, tmp_path: Path, keep: Keep) -> Iterator[Flips]:
    """Events that flow through a receiver and two workers."""
    receiver = Receiver(tmp_path, watched.url)
    for program in (receiver, Worker(tmp_path, watched.url, "worker1"), Worker(tmp_path, watched.url, "worker2")):
        keep(program)
    flips = Flips(receiver)
    yield flips
    flips.stop()


def promoted(watched: Watched) -> bool:
    return watched.primary_port() == watched.replica.port


def check(flips: Flips, client: Redis) -> None:
    """Checks that all that was accepted is applied, and that each user's changes are a chain that ends with it."""
    wait_until(lambda: not flips.not_applied(client), 30, "all events to be applied")
    for user, entries in changes(client).items():
        statuses = ["", *(status for status, _, _ in entries)]
        assert [previous for _, previous, _ in entries] == statuses[:-1]
        assert statuses[-1] == flips.last[user][1]


def test_nothing_accepted_is_lost_when_the_primary_is_killed(watched: Watched, flips: Flips) -> None:
    client = connect(watched.url)
    flips.go_on(0.7)
    watched.primary.kill()
    killed_at, accepted = time.monotonic(), flips.accepted
    wait_until(lambda: promoted(watched), what="another primary")
    promoted_after = time.monotonic() - killed_at
    flips.go_on(0.7)
    flips.stop()
    check(flips, client)
    print(f"promoted after {promoted_after:.1f} s, accepted {accepted} before and {flips.accepted} in all")


def test_nothing_accepted_is_lost_when_the_primary_is_frozen_and_wakes_up(watched: Watched, flips: Flips) -> None:
    client = connect(watched.url)
    flips.go_on(0.7)
    watched.primary.signal(signal.SIGSTOP)
    frozen_at = time.monotonic()
    wait_until(lambda: promoted(watched), what="another primary")
    print(f"promoted after {time.monotonic() - frozen_at:.1f} s")
    watched.primary.signal(signal.SIGCONT)  # for some seconds there are two that take writes
    wait_until(lambda: watched.is_replica(watched.primary), 30, "the old one to step down")
    print(f"stepped down after {time.monotonic() - frozen_at:.1f} s")
    flips.stop()
    check(flips, client)
    print(f"accepted {flips.accepted}")


def test_a_client_notices_that_another_server_is_the_primary_now(watched: Watched) -> None:
    client = connect(watched.url)
    client.ping()
    assert refresh_primary(client)
    watched.clients[0].execute_command("SENTINEL", "FAILOVER", watched.SERVICE)
    wait_until(lambda: not refresh_primary(client), what="the client to notice")
    assert client.set("written", "here")
    assert refresh_primary(client)


def test_what_no_replica_confirms_is_not_done_unless_there_is_none(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(connect(watched.url), load({"PRESENCE_REDIS_URL": watched.url}))
    event = Event("alice", "callbackUserOnlineCommand", 1, "", 1, "IOS", "op", 1000)

    def takes(seq: int) -> bool:
        with suppress(Unavailable):
            return store.apply([event._replace(seq=seq)])[0].name in {"applied", "duplicate"}
        return False

    wait_until(lambda: takes(1), what="the replica to confirm, however busy the machine is")
    watched.replica.kill()
    with pytest.raises(Unavailable, match="no replica confirms"):
        store.apply([event._replace(seq=2)])
    wait_until(lambda: takes(3), what="presence to go on without a replica")
    assert "no replica confirms writes" in caplog.text
    watched.replica.restart()
    wait_until(lambda: takes(3) and "confirms writes to presence again" in caplog.text, what="the replica's word")


def test_without_a_primary_the_error_is_an_outage_and_one_short_line(watched: Watched) -> None:
    for url in (watched.url.replace("/mymaster/", "/another/"), watched.url.partition("?")[0], nobody()):
        with pytest.raises(MasterNotFoundError, match="No master found") as caught:
            connect(url).ping()
        assert is_outage(caught.value)
        assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


def nobody() -> str:
    return f"redis+sentinel://127.0.0.1:{free_port()}/mymaster"
