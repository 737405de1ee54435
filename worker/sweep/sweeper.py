"""The sweep: closes sessions that were not renewed in time, gives users the lease and retention of new settings, and
lets go of batches that are safe.

It runs in every worker; one has the turn, and another takes it when that one is gone. Two at once do no harm. It asks
for what is due, so it costs what runs out and not what exists.
"""

import json
import logging
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, fields
from itertools import islice
from typing import Any

from redis.exceptions import RedisError

from shared.errors import PresenceError, Unavailable
from shared.queue import open_queue, waiting_since
from shared.redis.client import connect
from shared.settings import Settings
from worker.store.store import PIPELINE_EVENTS, Store
from worker.sweep.replay_window import apply_again, settle
from worker.sweep.watermark import LeaseWatermark, look

SWEEP_SECONDS = 1.0
#: How long a worker that is gone keeps the turn.
TURN_SECONDS = 5.0
#: Of each second, while all users get new settings.
WALK_SECONDS = 0.3
#: With more batches than this on the queue, their age is not asked.
BATCHES_MOST = 1000
#: Reports of receivers that are gone are kept so long, for people to see.
KEPT_MS = 3_600_000

log = logging.getLogger("worker.leases")


class Sweeper(threading.Thread):
    """Sweeps until `stopping` is set."""

    def __init__(self, settings: Settings, stopping: threading.Event) -> None:
        super().__init__(name="sweep", daemon=True)
        self._keys = settings.keys
        self._stopping = stopping
        self._elsewhere = settings.has_separate_queue
        self._lease_ms = settings.online_lease_seconds * 1000
        self._wanted = f"{settings.online_lease_seconds}/{settings.retention_seconds}"
        self._name = secrets.token_hex(8)
        self._client = connect(settings.queue_url)
        self._queue = open_queue(self._client, settings)
        self._store = Store(connect(settings.redis_url), settings)
        self._walk: Iterator[str] | None = None
        # Whoever tries leases of seconds should not wait for whole ones.
        self._pause = min(SWEEP_SECONDS, settings.online_lease_seconds / 20 or SWEEP_SECONDS)

    def run(self) -> None:
        trouble = ""
        while not self._stopping.wait(self._pause):
            try:
                self.sweep()
                trouble = ""
            except (RedisError, PresenceError) as error:
                self._walk = None
                if str(error) != trouble:
                    log.warning("no sweep: %s", error)
                trouble = str(error)
            except Exception:
                log.exception("the sweep stumbled")
                self._stopping.wait(SWEEP_SECONDS)

    def sweep(self) -> int:
        """One sweep, where this worker has the turn: how many sessions it closed. Raises RedisError, Unavailable."""
        if not self._has_turn():
            self._walk = None
            return 0
        found: Any = self._client.hgetall(self._keys.sweep)
        state = {name.decode(): value.decode() for name, value in found.items()}
        asked_at = time.time()
        presence = self._store.run_ids()
        if self._elsewhere:
            if state.get("presence", presence) != presence:
                apply_again(self._queue)
                self._client.hset(self._keys.sweep, "presence", presence)  # or what fails below would repeat it
            settle(self._queue, asked_at)
        reports = self._reports()
        coverage = self._look(_read(state), presence, reports) if self._lease_ms else LeaseWatermark()
        closed = 0
        if self._lease_ms and not coverage.held:
            closed = self._close(coverage)
        settings = self._adopt(state.get("settings", "0/0"))
        if not self._has_turn():  # it was frozen meanwhile, and another knows better
            return closed
        state = {name: str(value) for name, value in asdict(coverage).items()}
        self._client.hset(self._keys.sweep, mapping={**state, "settings": settings, "presence": presence})
        return closed

    def _has_turn(self) -> bool:
        turn, ms = self._keys.sweeper, int(TURN_SECONDS * 1000)
        if self._client.set(turn, self._name, nx=True, px=ms):
            return True
        if self._client.get(turn) != self._name.encode():
            return False
        self._client.pexpire(turn, ms)
        return True

    def _look(self, before: LeaseWatermark, presence: str, reports: list[dict[str, Any]]) -> LeaseWatermark:
        waiting = waiting_since(self._queue, BATCHES_MOST)  # after the reports, which say what is on it
        servers = f"{self._client.info('server')['run_id']} {presence}"
        now = time.time_ns() // 1_000_000
        return look(before, now, self._lease_ms, servers, reports, waiting)

    def _reports(self) -> list[dict[str, Any]]:
        found: Any = self._client.hgetall(self._keys.receivers)
        reports = {name: self._report(name, text) for name, text in found.items()}
        longest = time.time_ns() // 1_000_000 - max(KEPT_MS, self._lease_ms)
        for name in [name for name, report in reports.items() if report["at"] < longest]:
            log.warning("the receiver %s is gone; its journal had %d events", name.decode(), reports[name]["events"])
            self._client.hdel(self._keys.receivers, name)
            del reports[name]
        return list(reports.values())

    def _report(self, name: bytes, text: bytes) -> dict[str, Any]:
        try:
            report = json.loads(text)
            return {**report, **{field: int(report[field]) for field in ("at", "mark", "events")}}
        except (ValueError, KeyError, TypeError):
            where = f"the field {name.decode(errors='replace')} of {self._keys.receivers}"
            raise Unavailable(f"{where} is no receiver's report; remove it with HDEL") from None

    def _close(self, coverage: LeaseWatermark) -> int:
        closed = 0
        while due := self._store.due(coverage.until, PIPELINE_EVENTS):
            closed += self._store.review(list(due), coverage.until, coverage.swept_at, due)
            if len(due) < PIPELINE_EVENTS or self._stopping.is_set() or not self._has_turn():
                break
        if closed:
            log.info("closed %d sessions that were not renewed", closed)
        return closed

    def _adopt(self, settings: str) -> str:
        """Walks on through all users where lease or retention have been set anew; returns what they all have."""
        if settings == self._wanted:
            return settings
        if self._walk is None:
            log.info("lease and retention are new: all users get them")
            self._walk = self._store.user_ids()
        rest_at = time.monotonic() + WALK_SECONDS
        while user_ids := list(islice(self._walk, PIPELINE_EVENTS)):
            self._store.review(user_ids, 0, time.time_ns() // 1_000_000)
            if time.monotonic() > rest_at:
                return settings
        self._walk = None
        log.info("all users have the new lease and retention")
        return self._wanted


def _read(state: dict[str, str]) -> LeaseWatermark:
    known = {field.name: state[field.name] for field in fields(LeaseWatermark) if field.name in state}
    typed: dict[str, Any] = {
        name: value if name in ("held", "servers") else int(value) for name, value in known.items()
    }
    return LeaseWatermark(**typed)
