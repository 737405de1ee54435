"""A resolver that says nothing: programs stop, and commands give up, in good time."""

import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from redis.exceptions import ConnectionError
from support import Process, Worker, wait_until

from shared.redis.client import connect, is_outage
from shared.redis.connections import _LookUp

#: The resolver, as it is for names while its servers are silent.
_SILENT = """
import socket, time
own = socket.getaddrinfo
def silent(host, *arguments, **options):
    if host not in ("localhost", "127.0.0.1", "0.0.0.0"):
        time.sleep(40)
    return own(host, *arguments, **options)
socket.getaddrinfo = silent
from worker.__main__ import main
raise SystemExit(main())
"""
URLS = {"redis_url": "redis://presence.silent:6379/0", "queue_url": "redis+sentinel://sentinel.silent/main"}


class Deaf(Worker):
    """A worker to which the resolver says nothing."""

    def start(self) -> None:
        self.command = [sys.executable, "-c", _SILENT]
        super().start()


def test_a_worker_stops_within_what_compose_gives_it(tmp_path: Path, keep: Callable[[Process], Process]) -> None:
    worker = Deaf(tmp_path, URLS["redis_url"])
    keep(worker)
    wait_until(lambda: "the resolver has not found presence.silent within 2 s" in worker.text())
    assert worker.stop(8) == 0


@pytest.mark.parametrize("url", [*URLS.values(), "redis+cluster://node.silent:7000,other.silent"])
def test_nothing_waits_long_for_the_resolver(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    silent, own = threading.Event(), socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda *each, **options: silent.wait(10) and own(*each, **options))
    started_at = time.monotonic()
    with connect(url, timeout=0.2) as client:
        for _ in range(2):
            with pytest.raises(ConnectionError, match=r"the resolver has not found|No master found") as caught:
                client.get("key")
            assert is_outage(caught.value)
    assert time.monotonic() - started_at < 5
    silent.set()
    wait_until(lambda: not _LookUp._under_way, what="the threads to end")
