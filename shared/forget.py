"""Forgetting a user for good, as `presence forget` does: the next callback starts afresh."""

import re
import time
from typing import Any

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import ResponseError, WatchError

from shared.logs.text import is_utf8
from shared.redis.backend import Backend
from shared.settings import Settings

#: What the change feed names as the cause.
FORGOTTEN = "forgotten"


def forget(client: Backend, settings: Settings, user_id: str) -> str:
    """Deletes what is remembered of the user. Returns the user's last status, "" if there was nothing.

    If the key is not a hash, it holds no user; it is deleted too, and the status is `unknown`. If the user was online,
    the change feed gets an entry. On one Redis all is one step; on a Cluster it is several. Raises RedisError.
    """
    if not is_utf8(user_id):  # as nobody's id is
        return ""
    key = settings.keys.user(user_id)
    if client.is_cluster:
        user = _read(client, key)
        pipeline = client.pipeline(transaction=False)
        _delete(pipeline, settings, user_id, user)
        pipeline.execute()
        return _status(user)
    while True:
        with client.pipeline() as transaction:
            transaction.watch(key)  # type: ignore[no-untyped-call]
            user = _read(client, key)
            transaction.multi()
            _delete(transaction, settings, user_id, user)
            try:
                transaction.execute()
            except WatchError:  # an event was applied meanwhile
                continue
            return _status(user)


def _read(client: Redis, key: str) -> dict[str, str] | None:
    """None if the key is not a hash."""
    try:
        found: Any = client.hgetall(key)
    except ResponseError as error:
        if str(error).startswith("WRONGTYPE"):
            return None
        raise
    return {name.decode(errors="replace"): value.decode(errors="replace") for name, value in found.items()}


def _status(user: dict[str, str] | None) -> str:
    return "unknown" if user is None else user.get("status", "")


def _delete(pipeline: Pipeline, settings: Settings, user_id: str, user: dict[str, str] | None) -> None:
    keys = settings.keys
    if _status(user) == "online" and user:
        _tell(pipeline, settings, user_id, user)
    pipeline.delete(keys.user(user_id))
    pipeline.zrem(keys.leases, user_id)


def _tell(pipeline: Pipeline, settings: Settings, user_id: str, user: dict[str, str]) -> None:
    entry = {
        "user_id": user_id,
        "status": "offline",
        "previous": "online",
        "seq": user.get("seq", "0"),
        "changed_at": str(max(time.time_ns() // 1_000_000, _number(user.get("changed_at", "")))),
        "command": FORGOTTEN,
        "conn_id": user.get("conn_id", ""),
        "platform_id": user.get("platform_id", "0"),
        "operation_id": "",
    }
    fields: Any = entry
    pipeline.xadd(settings.keys.changes, fields, maxlen=settings.changes_maxlen, approximate=True)
    pipeline.hincrby(settings.keys.stats, "changes", 1)
    pipeline.hincrby(settings.keys.stats, "users_online", -1)


def _number(text: str) -> int:
    """0 if another program wrote something else there."""
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else 0
