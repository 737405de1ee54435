"""Writes down which batches of OpenIM's gateways were heard, see shared/gateways.py."""

import logging
import random
import time
from collections.abc import Sequence
from typing import Any

from redis import Redis
from redis.exceptions import RedisError, ResponseError, WatchError

from openim_presence.keys import Keys
from shared import gateways
from shared.events import Event
from shared.gateways import Heard, Process
from shared.logs.throttle import LogThrottle

#: When another worker was writing: how often it is tried again, and after how long a pause at the most.
TRIES = 50
PAUSE_SECONDS = 0.005

log = logging.getLogger("worker")
_troubles = LogThrottle(log, most=1)


def note(client: Redis, keys: Keys, events: Sequence[Event]) -> None:
    """Adds the batches in these events to what was heard. Raises nothing: presence matters more than what is known of
    gateways.

    client: of the queue's server. Applied twice, in any order, it comes to the same.
    """
    heard = gateways.heard_in(events)
    if not heard:
        return
    try:
        for _ in range(TRIES):
            if _add(client, keys.gateways, heard):
                return
            time.sleep(random.uniform(0, PAUSE_SECONDS))
        _troubles.say(
            logging.WARNING, "too many workers write down what was heard of gateways: a batch may count as lost"
        )
    except (RedisError, ValueError) as error:
        hint = f"; remove the key {keys.gateways}" if isinstance(error, (ResponseError, ValueError)) else ""
        _troubles.say(logging.WARNING, "what was heard of gateways is not written down: %s%s", error, hint)


def _add(client: Redis, key: str, heard: dict[tuple[str, int], dict[int, Heard]]) -> bool:
    """False where another worker was writing."""
    names = [gateways.encode_name(*process) for process in heard]
    with client.pipeline() as transaction:
        transaction.watch(key)  # type: ignore[no-untyped-call]
        found: Any = transaction.hmget(key, names)
        texts: dict[Any, Any] = {}
        for name, text, batches in zip(names, found, heard.values(), strict=True):
            texts[name] = gateways.encode(_merge(gateways.decode(text) if text else None, batches))
        transaction.multi()
        transaction.hset(key, mapping=texts)
        try:
            transaction.execute()
        except WatchError:
            return False
    if None in found:
        _forget(client, key)
    return True


def _merge(process: Process | None, batches: dict[int, Heard]) -> Process:
    for number, batch in sorted(batches.items(), key=lambda item: item[1].seq):
        process = process or Process(batch.at_ms, batch.at_ms)
        process.hear(number, batch.seq, batch.at_ms, batch.kinds)
    assert process  # noqa: S101  # there is no process without a batch
    return process


def _forget(client: Redis, key: str) -> None:
    """Forgets processes that ended long ago, and whatever is too much, when a new one is heard of."""
    fields: Any = client.hgetall(key)
    known = gateways.decode_all(fields)
    newest = max(process.last_at_ms for process in known.values())
    kept = sorted(known, key=lambda name: known[name].last_at_ms, reverse=True)[: gateways.MOST_PROCESSES]
    recent = {gateways.encode_name(*name) for name in kept if newest - known[name].last_at_ms <= gateways.KEPT_MS}
    if gone := [name for name in fields if name.decode(errors="replace") not in recent]:
        client.hdel(key, *gone)
