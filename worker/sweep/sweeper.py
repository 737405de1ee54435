"""The sweep: does once a second what no event triggers, in a thread of each worker.

One worker has the turn; if it is gone, another takes it. Two at once do no harm. Each duty is a module of this room,
and asks only for what is due, so it costs what runs out and not what exists. All use the clock of the queue's server.
"""

import logging
import threading
from dataclasses import asdict, fields
from typing import Any

from redis.exceptions import NoPermissionError, RedisError

from shared.errors import PresenceError, Unavailable
from shared.queue import open_queue
from shared.redis.client import connect, is_outage
from shared.redis.clock import ServerClock
from shared.redis.turn import Turn
from shared.settings import Settings
from worker.store.store import Store
from worker.sweep.backfill import NEITHER, Backfill
from worker.sweep.leases import Leases
from worker.sweep.receivers import read_reports
from worker.sweep.replay_window import ReplayWindow
from worker.sweep.watermark import LeaseWatermark

SWEEP_SECONDS = 1.0
#: How long a worker that is gone keeps the turn.
TURN_SECONDS = 5.0

log = logging.getLogger("worker.leases")


class Sweeper(threading.Thread):
    """Sweeps until `stopping` is set."""

    def __init__(self, settings: Settings, stopping: threading.Event) -> None:
        super().__init__(name="sweep", daemon=True)
        self._keys = settings.keys
        self._stopping = stopping
        self._lease_ms = settings.online_lease_seconds * 1000
        self._client = connect(settings.queue_url)
        self._turn = Turn(self._client, self._keys.sweeper, TURN_SECONDS)
        self._clock = ServerClock(self._client)
        self._presence = connect(settings.redis_url)
        self._store = Store(self._presence, settings, self._clock.now_ms)
        queue = open_queue(self._client, settings)
        self._window = ReplayWindow(queue) if settings.has_separate_queue else None
        self._leases = Leases(queue, self._store, self._lease_ms) if self._lease_ms else None
        self._backfill = Backfill(self._store, settings)
        self._may_ask = True
        self._cleared = False
        # Leases of seconds, as in tests and trials, need shorter pauses.
        self._pause = min(SWEEP_SECONDS, settings.online_lease_seconds / 20 or SWEEP_SECONDS)

    def run(self) -> None:
        trouble = ""
        while not self._stopping.wait(self._pause):
            try:
                self.sweep()
                trouble = ""
            except (RedisError, PresenceError) as error:
                self._break_off()
                if str(error) != trouble and self._concerns_anybody(error):
                    log.warning("no sweep: %s", error)
                trouble = str(error)
            except Exception:
                log.exception("the sweep failed; trying again")
                self._break_off()
                self._stopping.wait(SWEEP_SECONDS)

    def _concerns_anybody(self, error: Exception) -> bool:
        """Whether to log it. The worker logs servers that are away, and without leases nothing waits for a sweep."""
        cause = error.__cause__ if isinstance(error, Unavailable) else error
        return self._leases is not None or not (isinstance(cause, Exception) and is_outage(cause))

    def _break_off(self) -> None:
        self._backfill.break_off()
        if self._window:
            self._window.forget()

    def sweep(self) -> int:
        """Sweeps once, if this worker has the turn; returns how many sessions it closed.

        Raises RedisError, Unavailable.
        """
        if not self._turn.take():
            self._break_off()
            return 0
        found: Any = self._client.hgetall(self._keys.sweep)
        before = {name.decode(): value.decode() for name, value in found.items()}
        seen_at = self._window.look() if self._window else 0.0
        queue_run, presence = self._clock.ask(), self._ask_presence()
        now_ms = self._clock.now_ms()
        if self._window and presence:
            if before.get("presence", presence) != presence:
                self._window.apply_again()
                self._client.hset(self._keys.sweep, "presence", presence)  # else a failure below would repeat this
            self._window.settle(seen_at)
        reports = read_reports(self._client, self._keys, now_ms, self._lease_ms)
        watermark, closed = LeaseWatermark(), 0
        if self._leases:
            servers = f"{queue_run} {presence}" if presence else ""
            watermark = self._leases.look(_read(before), now_ms, servers, reports)
            if not watermark.held:
                closed = self._leases.close(watermark, lambda: not self._stopping.is_set() and self._turn.take())
        after: dict[Any, Any] = asdict(watermark) | self._give_settings(before, presence)
        after["presence"] = presence or before.get("presence", "")
        if self._turn.take():  # else this worker was frozen meanwhile, and another knows more
            self._client.hset(self._keys.sweep, mapping=after)
        return closed

    def _give_settings(self, before: dict[str, str], presence: str) -> dict[str, str]:
        """Which settings all users have now, and on which servers: a restored server may have older users."""
        walked = before.get("walked", presence)  # an older release did not say
        has = {"settings": before.get("settings", NEITHER), "walked": walked}
        done = {"settings": self._backfill.wanted, "walked": presence or walked}
        if has != done and not self._backfill.give(self._clock.now_ms(), has["settings"]):
            return has
        if not self._leases and not self._cleared:
            self._presence.unlink(self._keys.leases)  # left from a time with leases
            self._cleared = True
        return done

    def _ask_presence(self) -> str:
        """The run ids of presence's servers; "" if they may not be asked."""
        try:
            runs = self._store.run_ids()
        except Unavailable as error:
            if not isinstance(error.__cause__, NoPermissionError):
                raise
            if self._may_ask:
                log.error("presence's Redis forbids INFO: no lease runs out, and what it forgets is not applied again")
            self._may_ask = False
            return ""
        self._may_ask = True
        return runs


def _read(state: dict[str, str]) -> LeaseWatermark:
    known = {field.name: state[field.name] for field in fields(LeaseWatermark) if field.name in state}
    typed: dict[str, Any] = {
        name: value if name in ("held", "servers") else int(value) for name, value in known.items()
    }
    return LeaseWatermark(**typed)
