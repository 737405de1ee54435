"""The whole system as its Redis servers show it: what the metrics pages and `presence status` have to say.

Each server is asked in a thread of its own, and by one reading at a time, so a server that hangs holds up neither the
other one nor whoever asks, and many who ask do not pile up.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from redis import Redis
from redis.exceptions import RedisError
from rq.job import Job
from rq.utils import utcparse
from rq.worker_registration import WORKERS_BY_QUEUE_KEY

from shared.cluster import Cluster
from shared.queue import open_queue
from shared.redis import connect
from shared.settings import Settings
from shared.stats import Stats

#: For one answer of a server, and for all of them: a page must come within 2 s, whatever is down.
ANSWER_SECONDS = 0.6
ALL_SECONDS = 1.5


@dataclass(frozen=True, slots=True)
class Server:
    """One Redis, or the primaries of a Cluster.

    error: why it does not answer, or "". max_bytes: 0 where it has no limit.
    """

    error: str = ""
    version: str = ""
    used_bytes: int = 0
    max_bytes: int = 0
    evicts: bool = False
    on_disk: bool = True


@dataclass(frozen=True, slots=True)
class Report:
    """What one receiver process last said. All events received before mark_ms are in the queue.

    trouble: why it refuses events, or "".
    """

    name: str
    at_ms: int
    mark_ms: int
    events: int
    bytes: int
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Worker:
    """One live worker; since_ms: when it started; seen_ms: its last sign of life."""

    name: str
    state: str
    since_ms: int
    seen_ms: int


@dataclass(frozen=True, slots=True)
class QueueState:
    """What RQ's keys and ours on its server say.

    oldest_ms: when the oldest event in the queue was received, 0 where none waits. leases_held: why no lease runs out
    now, or "". troubles: keys of wrong types.
    """

    server: Server
    jobs: int = 0
    oldest_ms: int = 0
    running: int = 0
    retrying: int = 0
    failed: int = 0
    workers: tuple[Worker, ...] = ()
    receivers: tuple[Report, ...] = ()
    leases_held: str = ""
    troubles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PresenceState:
    """last_change: the newest entry of the stream of changes."""

    server: Server
    stats: Stats = field(default_factory=Stats)
    last_change: dict[str, str] = field(default_factory=dict)
    troubles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class System:
    """Both, at one time (Unix milliseconds)."""

    at_ms: int
    queue: QueueState
    presence: PresenceState


T = TypeVar("T")


class _OneAtATime(Generic[T]):
    """Runs a function in a thread; who asks meanwhile gets the same result."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._lock = threading.Lock()
        self._running: Future[T] | None = None

    def begin(self) -> Future[T]:
        with self._lock:
            if self._running is None or self._running.done():
                self._running = Future()
                self._running.set_running_or_notify_cancel()  # who stops waiting must not cancel it for the others
                threading.Thread(target=self._run, args=(self._running,), name="observer", daemon=True).start()
            return self._running

    def _run(self, future: Future[T]) -> None:
        try:
            future.set_result(self._function())
        except Exception as error:
            future.set_exception(error)


class Observer:
    """Reads the state of both servers, whatever they do. For use by several threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._clients: dict[str, Redis] = {}
        self._queue = _OneAtATime(self._read_queue)
        self._presence = _OneAtATime(self._read_presence)

    def begin(self) -> tuple[Future[QueueState], Future[PresenceState]]:
        """Both are to be waited for ALL_SECONDS at the most, and then given to `end`."""
        return self._queue.begin(), self._presence.begin()

    def end(self, queue: Future[QueueState], presence: Future[PresenceState]) -> System:
        late = Server(error=f"no answer within {ALL_SECONDS:g} s")
        return System(
            time.time_ns() // 1_000_000,
            queue.result() if queue.done() else QueueState(late),
            presence.result() if presence.done() else PresenceState(late),
        )

    def read(self) -> System:
        """Blocks for ALL_SECONDS at the most."""
        begun = self.begin()
        both: list[Future[Any]] = [*begun]
        futures.wait(both, ALL_SECONDS)
        return self.end(*begun)

    def _read_queue(self) -> QueueState:
        try:
            with self._client(self._settings.queue_url, "queue") as client:
                return read_queue(client, self._settings)
        except Exception as error:  # whatever it answered: who asks must hear of it
            return QueueState(Server(error=_text(error)))

    def _read_presence(self) -> PresenceState:
        try:
            with self._client(self._settings.redis_url, "presence") as client:
                return read_presence(client, self._settings)
        except Exception as error:
            return PresenceState(Server(error=_text(error)))

    @contextmanager
    def _client(self, url: str, role: str) -> Iterator[Redis]:
        """Kept from one reading to the next, but after a failure: a Cluster may have other primaries then."""
        client = self._clients.pop(role, None) or connect(url, timeout=ANSWER_SECONDS)
        try:
            yield client
        except Exception:
            client.close()
            raise
        self._clients[role] = client


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__


def read_queue(client: Redis, settings: Settings) -> QueueState:
    """Two round trips. Raises RedisError where the server does not answer; a key of a wrong type is a trouble."""
    queue = open_queue(client, settings)
    asked = {
        "server": ("INFO",),
        queue.key: ("LLEN", queue.key),
        "oldest": ("LINDEX", queue.key, 0),
        queue.started_job_registry.key: ("ZCARD", queue.started_job_registry.key),
        queue.scheduled_job_registry.key: ("ZCARD", queue.scheduled_job_registry.key),
        queue.failed_job_registry.key: ("ZCARD", queue.failed_job_registry.key),
        "workers": ("SMEMBERS", WORKERS_BY_QUEUE_KEY % queue.name),
        settings.keys.receivers: ("HGETALL", settings.keys.receivers),
        settings.keys.sweep: ("HGET", settings.keys.sweep, "held"),
    }
    answers = dict(zip(asked, _ask(client, list(asked.values())), strict=True))
    # Of a wrong type, say. The first word after the command is the key.
    troubles = {f"{(*asked[name], '')[1]}: {reply}": None for name, reply in answers.items() if _failed(reply)}
    _raise_if_all_failed(answers.values())
    good = {name: None if _failed(reply) else reply for name, reply in answers.items()}

    keys = sorted(good["workers"] or ())
    oldest = [Job.key_for(_decode(good["oldest"]))] if good["oldest"] else []
    found = _ask(
        client,
        [("HMGET", key, "meta", "created_at") for key in oldest]
        + [("HMGET", key, "state", "birth", "last_heartbeat") for key in keys],
    )
    return QueueState(
        _server(good["server"] or {}),
        jobs=good[queue.key] or 0,
        oldest_ms=_received_ms(found[0]) if oldest else 0,
        running=good[queue.started_job_registry.key] or 0,
        retrying=good[queue.scheduled_job_registry.key] or 0,
        failed=good[queue.failed_job_registry.key] or 0,
        workers=tuple(_workers(keys, found[len(oldest) :])),
        receivers=tuple(_reports(good[settings.keys.receivers] or {})),
        leases_held=_decode(good[settings.keys.sweep] or b""),
        troubles=tuple(troubles),
    )


def read_presence(client: Redis, settings: Settings) -> PresenceState:
    """Each command goes to one key or node, since this may be a Cluster. Raises RedisError where one is down."""
    keys = settings.keys
    infos = client.at_each_primary(lambda node: node.info()) if isinstance(client, Cluster) else [client.info()]
    server = _server(*infos)
    troubles = []
    stats, last_change = Stats(), {}
    try:
        stats = Stats.of(client.hgetall(keys.stats))  # type: ignore[arg-type]  # the client decodes nothing
    except (RedisError, ValueError) as error:
        troubles.append(f"{keys.stats}: {error}")
    try:
        newest: Any = client.xrevrange(keys.changes, count=1)
        for _, fields in newest:
            last_change = {_decode(name): _decode(value) for name, value in fields.items()}
    except RedisError as error:
        troubles.append(f"{keys.changes}: {error}")
    return PresenceState(server, stats, last_change, tuple(troubles))


def _ask(client: Redis, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    pipeline = client.pipeline(transaction=False)
    for command in commands:
        pipeline.execute_command(*command)  # type: ignore[no-untyped-call]
    return pipeline.execute(raise_on_error=False) if commands else []


def _failed(reply: object) -> bool:
    return isinstance(reply, Exception)


def _raise_if_all_failed(replies: Any) -> None:
    errors = [reply for reply in replies if isinstance(reply, Exception)]
    if len(errors) == len(replies):
        raise errors[0]


def _server(*infos: dict[str, Any]) -> Server:
    first = infos[0]
    return Server(
        version=f"{first.get('server_name', 'redis')} {first.get('valkey_version') or first.get('redis_version', '?')}",
        used_bytes=sum(int(info.get("used_memory", 0)) for info in infos),
        max_bytes=sum(int(info.get("maxmemory", 0)) for info in infos),
        evicts=any(info.get("maxmemory_policy", "noeviction") != "noeviction" for info in infos),
        on_disk=all(int(info.get("aof_enabled", 1)) for info in infos),
    )


def _received_ms(fields: Any) -> int:
    """Of a job: its `since`, or where another program made it, its creation."""
    meta, created_at = (None, None) if _failed(fields) else fields
    try:
        return int(json.loads(meta or "{}")["since"])
    except (TypeError, ValueError, KeyError):
        return _moment_ms(created_at)


def _workers(keys: Sequence[Any], found: Sequence[Any]) -> list[Worker]:
    """Those whose hash is there: it runs out when they give no sign of life."""
    return [
        Worker(_decode(key).rpartition(":")[2], _decode(state or b"?"), _moment_ms(birth), _moment_ms(seen))
        for key, (state, birth, seen) in ((k, f) for k, f in zip(keys, found, strict=True) if not _failed(f))
        if birth
    ]


def _reports(fields: dict[bytes, bytes]) -> list[Report]:
    reports = []
    for name, value in sorted(fields.items()):
        try:
            report = json.loads(value)
            at, mark, events, size = (int(report[field]) for field in ("at", "mark", "events", "bytes"))
            reports.append(Report(_decode(name), at, mark, events, size, str(report.get("trouble", ""))))
        except (ValueError, KeyError, TypeError):
            continue  # of another release
    return reports


def _moment_ms(text: bytes | None) -> int:
    """RQ's form of a time; 0 where there is none."""
    try:
        return int(utcparse(_decode(text)).timestamp() * 1000) if text else 0
    except ValueError:
        return 0


def _decode(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")
