"""Asking one Redis for its part of a snapshot."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from redis import Redis
from redis.exceptions import NoPermissionError, RedisError
from rq.job import Job
from rq.utils import utcparse
from rq.worker_registration import WORKERS_BY_QUEUE_KEY

from shared import reports
from shared.gateways import records
from shared.observe.counters import Stats
from shared.observe.snapshot import PresenceState, QueueState, Server, Worker
from shared.queue import SKEW_FIELD, BatchMeta, open_queue
from shared.redis.backend import Backend
from shared.reports import Report
from shared.settings import Settings
from shared.truth import ledger

#: After this time without a heartbeat a worker is silent; heartbeats come about every three seconds.
WORKER_ALIVE_MS = 15_000
CHANGES_SHOWN = 20


def collect_queue(client: Redis, settings: Settings) -> QueueState:
    """Takes two round trips. Raises RedisError if the server does not answer; keys of wrong types are in `troubles`."""
    queue = open_queue(client, settings)
    asked = {
        "server": ("INFO",),
        queue.key: ("LLEN", queue.key),
        "oldest": ("LINDEX", queue.key, 0),
        # Jobs that a worker has taken but not begun: a frozen worker may never begin.
        queue.intermediate_queue_key: ("LLEN", queue.intermediate_queue_key),
        "oldest taken": ("LINDEX", queue.intermediate_queue_key, -1),
        queue.started_job_registry.key: ("ZCARD", queue.started_job_registry.key),
        queue.scheduled_job_registry.key: ("ZCARD", queue.scheduled_job_registry.key),
        queue.failed_job_registry.key: ("ZCARD", queue.failed_job_registry.key),
        "workers": ("SMEMBERS", WORKERS_BY_QUEUE_KEY % queue.name),
        settings.keys.receivers: ("HGETALL", settings.keys.receivers),
        settings.keys.sweep: ("HGET", settings.keys.sweep, "held"),
        settings.keys.gateways: ("HGETALL", settings.keys.gateways),
        settings.keys.reconcile: ("HGETALL", settings.keys.reconcile),
    }
    answers = dict(zip(asked, _ask(client, list(asked.values())), strict=True))
    # A key of a wrong type, for example. The first word after the command is the key; INFO has none.
    failures = {str(asked[name][:2][-1]): reply for name, reply in answers.items() if _failed(reply)}
    _raise_if_all_failed(answers.values())
    good = {name: None if _failed(reply) else reply for name, reply in answers.items()}

    keys = sorted(good["workers"] or ())
    oldest = [
        Job.key_for(_decode(job_id).partition(":")[0]) for job_id in (good["oldest"], good["oldest taken"]) if job_id
    ]
    found = _ask(
        client,
        [("HMGET", key, "meta", "created_at") for key in oldest]
        + [("HMGET", key, "state", "birth", "last_heartbeat", SKEW_FIELD, "hostname", "pid") for key in keys],
    )
    at_ms = int((good["server"] or {}).get("server_time_usec", 0)) // 1000
    workers = _workers(keys, found[len(oldest) :])
    silent = [each for each in workers if at_ms - each.seen_ms > WORKER_ALIVE_MS]
    return QueueState(
        _server(good["server"] or {}),
        at_ms=at_ms,
        jobs=(good[queue.key] or 0) + (good[queue.intermediate_queue_key] or 0),
        oldest_ms=min(map(_received_ms, found[: len(oldest)]), default=0),
        running=good[queue.started_job_registry.key] or 0,
        retrying=good[queue.scheduled_job_registry.key] or 0,
        failed=good[queue.failed_job_registry.key] or 0,
        workers=tuple(each for each in workers if each not in silent),
        silent_workers=tuple(silent),
        receivers=tuple(_reports(good[settings.keys.receivers] or {})),
        leases_held=_decode(good[settings.keys.sweep] or b""),
        gateways=records.read(good[settings.keys.gateways] or {}, at_ms),
        ledger=ledger.read(good[settings.keys.reconcile] or {}),
        **_told(failures),
    )


def collect_presence(client: Backend, settings: Settings) -> PresenceState:
    """Each command is for one key or node, since this may be a Cluster. Raises RedisError if a node is down."""
    keys = settings.keys
    failures: dict[str, Exception] = {}
    infos: list[Any] = [{}]
    try:
        infos = client.at_each_primary(lambda node: node.info())
    except NoPermissionError as error:
        failures["INFO"] = error
    stats: Stats | None = None
    last_changes: tuple[dict[str, str], ...] = ()
    try:
        stats = Stats.of(client.hgetall(keys.stats))  # type: ignore[arg-type]  # the client decodes nothing
    except (RedisError, ValueError) as error:
        failures[keys.stats] = error
    try:
        newest: Any = client.xrevrange(keys.changes, count=CHANGES_SHOWN)
        last_changes = tuple({_decode(name): _decode(value) for name, value in fields.items()} for _, fields in newest)
    except RedisError as error:
        failures[keys.changes] = error
    if "INFO" in failures and stats is None:
        raise failures["INFO"]
    return PresenceState(_server(*infos), stats or Stats(), stats is not None, last_changes, **_told(failures))


def _told(failures: Mapping[str, Exception]) -> dict[str, tuple[str, ...]]:
    """The two fields for what cannot be read: we have no right to it, or its key is wrong."""
    told: dict[bool, list[str]] = {True: [], False: []}
    for what, error in failures.items():
        told[isinstance(error, NoPermissionError)].append(f"{what}: {error}")
    return {"denied": tuple(told[True]), "troubles": tuple(told[False])}


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
        troubles=tuple(dict.fromkeys(trouble for info in infos for trouble in _troubles(info))),
    )


def _troubles(info: dict[str, Any]) -> Iterator[str]:
    if info.get("role") == "slave":
        yield f"is a replica of {info.get('master_host')}:{info.get('master_port')}, and takes no writes"
    if "err" in (info.get("aof_last_write_status"), info.get("rdb_last_bgsave_status")):
        yield "could not write to its disk the last time"


def _received_ms(fields: Any) -> int:
    """When a job's oldest event was received or, if another program made the job, when it was created."""
    meta, created_at = (None, None) if _failed(fields) else fields
    return BatchMeta.parse(meta).received_ms or _moment_ms(created_at)


def _workers(keys: Sequence[Any], found: Sequence[Any]) -> list[Worker]:
    """The workers whose hash is there; it expires minutes after their last heartbeat."""
    return [
        Worker(
            name=_decode(key).rpartition(":")[2],
            state=_decode(state or b"?"),
            since_ms=_moment_ms(birth),
            seen_ms=_moment_ms(seen),
            skew_ms=int(skew or 0),
            host=_decode(host or b""),
            pid=int(pid or 0),
        )
        for key, (state, birth, seen, skew, host, pid) in (
            (k, f) for k, f in zip(keys, found, strict=True) if not _failed(f)
        )
        if birth
    ]


def _reports(fields: dict[bytes, bytes]) -> list[Report]:
    found = []
    for name, value in sorted(fields.items()):
        with suppress(ValueError):  # the sweep complains of what is not a report
            found.append(reports.decode(name, value))
    return found


def _moment_ms(text: bytes | None) -> int:
    """Parses a time as RQ writes it; 0 if there is none."""
    try:
        return int(utcparse(_decode(text)).timestamp() * 1000) if text else 0
    except ValueError:
        return 0


def _decode(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")
