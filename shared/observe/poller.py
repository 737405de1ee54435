"""Reads the state of both Redis servers, whatever they do.

Each server is read in its own thread, one reading at a time. So a server that hangs holds up neither the other one nor
the caller, and callers do not pile up.
"""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from shared.observe.collector import collect_presence, collect_queue
from shared.observe.snapshot import PresenceState, QueueState, Server, Snapshot
from shared.redis.backend import Backend
from shared.redis.client import connect
from shared.settings import Settings
from shared.timed import in_thread

#: Time for one answer of a server, and for all answers: a page must come within 2 s, whatever is down.
ANSWER_SECONDS = 0.6
ALL_SECONDS = 1.5

T = TypeVar("T")


class _SingleFlight(Generic[T]):
    """Runs a function in a thread; callers that come meanwhile get the same result."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._lock = threading.Lock()
        self._running: Future[T] | None = None

    def begin(self) -> Future[T]:
        with self._lock:
            if self._running is None or self._running.done():
                self._running = in_thread("poller", self._function)
            return self._running


class Poller:
    """Reads the state of both servers. For use by several threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._clients: dict[str, Backend] = {}
        self._queue = _SingleFlight(self._read_queue)
        self._presence = _SingleFlight(self._read_presence)

    def begin(self) -> tuple[Future[QueueState], Future[PresenceState]]:
        """Starts both readings. Wait for them for ALL_SECONDS at most, then pass them to `end`."""
        return self._queue.begin(), self._presence.begin()

    def end(self, queue: Future[QueueState], presence: Future[PresenceState]) -> Snapshot:
        late = Server(error=f"no answer within {ALL_SECONDS:g} s")
        of_queue = queue.result() if queue.done() else QueueState(late)
        of_presence = presence.result() if presence.done() else PresenceState(late)
        return Snapshot(of_queue.at_ms or time.time_ns() // 1_000_000, of_queue, of_presence)

    def poll(self) -> Snapshot:
        """Blocks for ALL_SECONDS at most."""
        begun = self.begin()
        both: list[Future[Any]] = [*begun]
        futures.wait(both, ALL_SECONDS)
        return self.end(*begun)

    def _read_queue(self) -> QueueState:
        try:
            with self._client(self._settings.queue_url, "queue") as client:
                return collect_queue(client, self._settings)
        except Exception as error:  # whatever it is: the caller shows it
            return QueueState(Server(error=_text(error)))

    def _read_presence(self) -> PresenceState:
        try:
            with self._client(self._settings.redis_url, "presence") as client:
                return collect_presence(client, self._settings)
        except Exception as error:
            return PresenceState(Server(error=_text(error)))

    @contextmanager
    def _client(self, url: str, role: str) -> Iterator[Backend]:
        """A client, kept for the next reading unless this one fails: a Cluster may have other primaries then."""
        client = self._clients.pop(role, None) or connect(url, timeout=ANSWER_SECONDS)
        try:
            yield client
        except Exception:
            client.close()
            raise
        self._clients[role] = client


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__
