"""Records which batches of OpenIM's gateways came, see shared/gateways."""

import logging
import random
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import RedisError, ResponseError, WatchError

from openim_presence.keys import Keys
from shared.events import Event
from shared.gateways import records
from shared.gateways.batches import Heard, Name, heard_in
from shared.gateways.process import Process
from shared.gateways.view import KEPT_MS
from shared.logs.throttle import LogThrottle

#: A limit, because anyone who may send callbacks can make up pids.
MOST_PROCESSES = 256
#: If another worker was writing: how often to try again, and the longest pause before that.
TRIES = 50
PAUSE_SECONDS = 0.005

log = logging.getLogger("worker")
_troubles = LogThrottle(log, most=1)


def note(client: Redis, keys: Keys, events: Sequence[Event], now_ms: int, skew_ms: int = 0) -> None:
    """Records the batches in these events. Raises nothing: presence matters more than knowledge of gateways.

    client: of the queue's server. now_ms: by its clock. skew_ms: how far the clock of the events' receiver is ahead of
    it. Events may be noted any number of times.
    """
    try:
        heard = heard_in(events, skew_ms)
        if not heard:
            return
        if len(heard) > MOST_PROCESSES:
            heard = dict(sorted(heard.items(), key=lambda item: len(item[1]))[-MOST_PROCESSES:])
        for _ in range(TRIES):
            if _add(client, keys.gateways, heard, now_ms):
                return
            time.sleep(random.uniform(0, PAUSE_SECONDS))
        _troubles.say(
            logging.WARNING, "too many workers record the batches of gateways at once: a batch may count as lost"
        )
    except RedisError as error:
        hint = f"; remove the key {keys.gateways}" if isinstance(error, ResponseError) else ""
        _troubles.say(logging.WARNING, "the batches of gateways are not recorded: %s%s", error, hint)
    except Exception as error:
        _troubles.say(logging.ERROR, "the batches of gateways are not recorded: %r", error)


def _add(client: Redis, key: str, heard: Mapping[Name, Mapping[int, Heard]], now_ms: int) -> bool:
    """False if another worker was writing."""
    fields = {name: records.encode_name(name) for name in heard}
    with client.pipeline() as transaction:
        transaction.watch(key)  # type: ignore[no-untyped-call]
        found: Any = transaction.hmget(key, list(fields.values()))
        forgotten = _too_much(transaction, key, fields.keys(), now_ms) if None in found else {}
        known = {name: records.decode(text) for name, text in zip(heard, found, strict=True)}
        before = _sums(known, now_ms)
        for name, batches in heard.items():
            _merge(known[name], batches, now_ms)
        after, gone = _sums(known, now_ms), _sums(forgotten, now_ms)

        transaction.multi()
        if forgotten:
            transaction.hdel(key, *map(records.encode_name, forgotten))
        texts: dict[Any, Any] = {fields[name]: records.encode(process) for name, process in known.items()}
        transaction.hset(key, mapping=texts)
        # The sums never go back, even if a number comes that seemed lost, or a run is forgotten.
        for index, field in enumerate((records.FORGOTTEN_HEARD, records.FORGOTTEN_LOST)):
            if less := max(0, before[index] - after[index]) + gone[index]:
                transaction.hincrby(key, field, less)
        try:
            transaction.execute()
        except WatchError:
            return False
    return True


def _sums(processes: Mapping[Name, Process], now_ms: int) -> tuple[int, int]:
    """How many batches came, and how many were lost."""
    each = processes.values()
    return sum(process.heard for process in each), sum(process.lost(now_ms) for process in each)


def _merge(process: Process, batches: Mapping[int, Heard], now_ms: int) -> None:
    for number, batch in sorted(batches.items(), key=lambda item: item[1].seq):
        process.hear(number, batch, now_ms)


def _too_much(transaction: Pipeline, key: str, heard: Collection[Name], now_ms: int) -> dict[Name, Process]:
    """The processes to forget: those that ended long ago, and the oldest beyond MOST_PROCESSES."""
    fields: Any = transaction.hgetall(key)
    others = {name: process for name, process in records.decode_all(fields).items() if name not in heard}
    oldest = sorted(others, key=lambda name: others[name].last_at_ms)
    excess = max(0, len(others) + len(heard) - MOST_PROCESSES)
    gone = {*oldest[:excess], *(name for name in oldest if now_ms - others[name].last_at_ms > KEPT_MS)}
    return {name: others[name] for name in gone}
