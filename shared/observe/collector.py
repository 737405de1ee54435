"""Asking one Redis for its part of a snapshot."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from redis import Redis
from redis.exceptions import RedisError
from rq.job import Job
from rq.utils import utcparse
from rq.worker_registration import WORKERS_BY_QUEUE_KEY

from shared import reports
from shared.gateways import records
from shared.observe.counters import Stats
from shared.observe.snapshot import PresenceState, QueueState, Server, Worker
from shared.queue import SKEW_FIELD, BatchMeta, open_queue
from shared.redis.cluster import Cluster
from shared.reports import Report
from shared.settings import Settings


def collect_queue(client: Redis, settings: Settings) -> QueueState:
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
        settings.keys.gateways: ("HGETALL", settings.keys.gateways),
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
        + [("HMGET", key, "state", "birth", "last_heartbeat", SKEW_FIELD) for key in keys],
    )
    at_ms = int((good["server"] or {}).get("server_time_usec", 0)) // 1000
    return QueueState(
        _server(good["server"] or {}),
        at_ms=at_ms,
        jobs=good[queue.key] or 0,
        oldest_ms=_received_ms(found[0]) if oldest else 0,
        running=good[queue.started_job_registry.key] or 0,
        retrying=good[queue.scheduled_job_registry.key] or 0,
        failed=good[queue.failed_job_registry.key] or 0,
        workers=tuple(_workers(keys, found[len(oldest) :])),
        receivers=tuple(_reports(good[settings.keys.receivers] or {})),
        leases_held=_decode(good[settings.keys.sweep] or b""),
        gateways=records.read(good[settings.keys.gateways] or {}, at_ms),
        troubles=tuple(troubles),
    )


def collect_presence(client: Redis, settings: Settings) -> PresenceState:
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
        troubles=tuple(dict.fromkeys(trouble for info in infos for trouble in _troubles(info))),
    )


def _troubles(info: dict[str, Any]) -> Iterator[str]:
    if info.get("role") == "slave":
        yield f"is a replica of {info.get('master_host')}:{info.get('master_port')}, and takes no writes"
    if "err" in (info.get("aof_last_write_status"), info.get("rdb_last_bgsave_status")):
        yield "could not write to its disk the last time"


def _received_ms(fields: Any) -> int:
    """Of a job: when its oldest event was received, or where another program made it, its creation."""
    meta, created_at = (None, None) if _failed(fields) else fields
    return BatchMeta.parse(meta).received_ms or _moment_ms(created_at)


def _workers(keys: Sequence[Any], found: Sequence[Any]) -> list[Worker]:
    """Those whose hash is there: it runs out when they give no sign of life."""
    return [
        Worker(
            _decode(key).rpartition(":")[2], _decode(state or b"?"), _moment_ms(birth), _moment_ms(seen), int(skew or 0)
        )
        for key, (state, birth, seen, skew) in ((k, f) for k, f in zip(keys, found, strict=True) if not _failed(f))
        if birth
    ]


def _reports(fields: dict[bytes, bytes]) -> list[Report]:
    found = []
    for name, value in sorted(fields.items()):
        with suppress(ValueError):  # what is no report the sweep complains of
            found.append(reports.decode(name, value))
    return found


def _moment_ms(text: bytes | None) -> int:
    """RQ's form of a time; 0 where there is none."""
    try:
        return int(utcparse(_decode(text)).timestamp() * 1000) if text else 0
    except ValueError:
        return 0


def _decode(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")
