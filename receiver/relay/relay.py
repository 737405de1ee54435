"""The relay: carries events from the journal to the queue, in a thread of its own.

The first waiting event goes after a moment, with all that came in it; later ones go in batches, with a pause between
them until a batch is full.
Events leave the journal only when Redis will not lose them any more: with `appendfsync everysec` a
server that is killed forgets its last second or two, so what was pushed in the last SETTLE_SECONDS is kept,
and pushed again when the server turns out to be a new run. Applying an event twice is harmless.

Once a second it also tells the workers and `presence status`, on the queue's Redis, how far it has come.
"""

import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from redis.exceptions import RedisError, ResponseError

from receiver.journal.journal import Journal
from receiver.journal.segment import Batch
from shared import reports
from shared.events import received_at
from shared.logs.outage import Outage
from shared.queue import enqueue_encoded, open_queue
from shared.redis.checks import durability_risk, incompatibility, queue_variable, read_info
from shared.redis.client import connect, is_outage, refresh_primary
from shared.redis.clock import ServerClock
from shared.reports import Report
from shared.settings import Settings, without_password

BATCH_EVENTS = 4000  # RQ spends the same time on a job, whatever is in it
#: From the first waiting event to its push. The two senders of an OpenIM gateway post a batch of callbacks within about
#: this time, and readers should see what it came to, not what was passed through on the way.
GATHER_SECONDS = 0.015
#: Between two pushes: this long at least, and so many times as long as the last one took, up to the most. A push takes
#: about 1 ms of the interpreter that the requests share, for one event as for hundreds: 15 ms alone cost a tenth of
#: what a receiver can accept.
PACE_SECONDS = 0.015
PACE_FACTOR = 30
PACE_MOST_SECONDS = 0.1
SETTLE_SECONDS = 5.0
REPORT_SECONDS = 1.0
#: An event's `received_at` is a little older than its line in the journal.
WATERMARK_SLACK_MS = 500
ADOPT_SECONDS = 5.0
PUSH_TIMEOUT_SECONDS = 5.0

log = logging.getLogger("receiver.relay")


class Relay(threading.Thread):
    """Runs until `stop`. Only it reads, settles and adopts in the journal."""

    def __init__(self, journal: Journal, settings: Settings) -> None:
        super().__init__(name="relay", daemon=True)
        self._journal = journal
        self._client = connect(settings.queue_url, timeout=PUSH_TIMEOUT_SECONDS, on_connect=self._greet)
        self._queue = open_queue(self._client, settings)
        self._clock = ServerClock(self._client)
        self._variable = queue_variable(settings)
        #: What was already said about the server.
        self._remarks: set[str] = set()
        self._outage = Outage(log, f"Redis for the queue, {without_password(settings.queue_url)},")
        self._disk = Outage(log, f"the journal directory {settings.journal_dir}")
        self._waiting = threading.Event()
        self._stopping = threading.Event()
        self._deadline = float("inf")
        #: The server that the connection leads to, as `INFO server` names each start of one.
        self._run_id = ""
        #: The server that has what is in the window.
        self._window_run_id = ""
        self._window: deque[tuple[float, Batch]] = deque()
        self._next_settling = 0.0
        self._next_adoption = 0.0
        self._reports = settings.keys.receivers
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._next_report = 0.0
        self._told = False
        self._watermark_ms = 0
        self._healthy_at_ms = 0
        #: How many pushes Redis took, and how many it did not.
        self.pushes_ok = 0
        self.pushes_failed = 0

    @property
    def redis_is_up(self) -> bool:
        return not self._outage.is_on

    @property
    def watermark_ms(self) -> int:
        """Unix milliseconds: every event that was received before is on the queue."""
        return self._watermark_ms

    def wake(self) -> None:
        """Says that the journal has an event. Cheap, for any thread."""
        if not self._waiting.is_set():
            self._waiting.set()

    def stop(self, grace_seconds: float) -> None:
        """Hands over what waits, for so long at the most, then ends; the rest stays in the journal."""
        self._deadline = time.monotonic() + grace_seconds
        self._stopping.set()
        self._waiting.set()
        self.join(grace_seconds + 1)

    def run(self) -> None:
        while time.monotonic() < self._deadline:
            try:
                if self._turn() and self._stopping.is_set():
                    self._sign_off()
                    return
                self._disk.over()
            except RedisError as error:
                self._rest(self._outage.failed(error))
            except OSError as error:
                self._rest(self._disk.failed(error))
            except Exception:
                # A thread that died of our own mistake would lose nothing, but tell nobody either.
                log.exception("the relay stumbled")
                self._rest(1.0)

    def _rest(self, seconds: float) -> None:
        if self._stopping.is_set():
            time.sleep(min(seconds, 0.1))  # the deadline is near
        else:
            self._stopping.wait(seconds)

    def _turn(self) -> bool:
        """Pushes one batch, or waits for one; True where there was nothing to push."""
        self._adopt()
        self._waiting.clear()
        asked_at_ms = time.time_ns() // 1_000_000 - WATERMARK_SLACK_MS
        # One event finds out whether Redis is back. With 4,000, redis-py spends 15 ms on wording each refusal.
        batch = self._journal.next_batch(1 if self._outage.is_on else BATCH_EVENTS)
        if batch is None:
            if not self._journal.unreadable_files():
                self._watermark_ms = asked_at_ms
            if self._report():
                self._settle()
            if not self._stopping.is_set() and self._waiting.wait(1.0):
                self._stopping.wait(GATHER_SECONDS)
            return True
        pushing = bool(batch.payloads)
        started_at = time.monotonic()
        if pushing:
            since_ms = received_at(batch.payloads[0])
            self._watermark_ms = min(asked_at_ms, since_ms)
            self._push(batch.payloads, since_ms)
            self._outage.over()
            batch.payloads.clear()
        self._journal.pushed(batch)
        self._window.append((time.monotonic(), batch))
        if pushing:
            self._settle()  # may take it all back, so after everything else
            self._report()
        if batch.lines < BATCH_EVENTS:
            took = time.monotonic() - started_at
            self._stopping.wait(min(max(PACE_SECONDS, PACE_FACTOR * took), PACE_MOST_SECONDS))
        return False

    def _push(self, payloads: list[bytes], since_ms: int) -> None:
        try:
            enqueue_encoded(self._queue, payloads, since_ms, self._clock.skew_ms)
        except RedisError:
            self.pushes_failed += 1
            raise
        self.pushes_ok += 1

    def _report(self) -> bool:
        """Tells how far the relay has come, if it is time to: True where Redis has answered."""
        now = time.monotonic()
        if now < self._next_report:
            return False
        self._next_report = now + REPORT_SECONDS
        self._clock.ask()
        now_ms, trouble = self._clock.now_ms(), self._journal.trouble
        if not trouble:
            self._healthy_at_ms = now_ms
        report = Report(
            self._name,
            at_ms=now_ms,
            watermark_ms=self._watermark_ms and self._watermark_ms - self._clock.skew_ms,
            events=self._journal.waiting_events,
            bytes=self._journal.waiting_bytes,
            trouble=trouble,
            healthy_at_ms=self._healthy_at_ms,
            skew_ms=self._clock.skew_ms,
            id=self._name,
        )
        self._tell(lambda: self._client.hset(self._reports, self._name, reports.encode(report)))
        self._outage.over()
        return True

    def _sign_off(self) -> None:
        with suppress(RedisError):  # nothing waits, so neither does the stop
            self._tell(lambda: self._client.hdel(self._reports, self._name))

    def _tell(self, command: Callable[[], object]) -> None:
        try:
            command()
        except ResponseError as error:
            if is_outage(error):
                raise
            if not self._told:  # a key of a wrong type must not hold up any event
                log.error("the key %s cannot be written; rename it, receivers report there: %s", self._reports, error)
            self._told = True

    def _adopt(self) -> None:
        now = time.monotonic()
        if now >= self._next_adoption:
            self._next_adoption = now + ADOPT_SECONDS
            self._journal.adopt_orphans()

    def _greet(self, connection: Any) -> None:
        """Runs at each new connection, those that redis-py makes without a word among them."""
        connection.on_connect()
        connection.send_command("INFO")
        reply = connection.read_response()
        info = read_info(reply.decode(errors="replace") if isinstance(reply, bytes) else str(reply))
        self._run_id = info.get("run_id", "")
        # Whatever it is, events are accepted, and wait in the journal if need be.
        for remark in filter(None, {incompatibility(info), durability_risk(info)} - self._remarks):
            self._remarks.add(remark)
            log.warning("%s: %s", self._variable, remark)

    def _settle(self) -> None:
        """Forgets what an answer of the same server, SETTLE_SECONDS later, shows to be safe.

        To be called right after such an answer.
        """
        if self._run_id != self._window_run_id:
            if self._window_run_id and (again := self._push_again()):
                log.warning("Redis was restarted or replaced: %d events of the last seconds go again", again)
            self._window_run_id = self._run_id
            return
        now = time.monotonic()
        if now < self._next_settling or not self._window:
            return
        if refresh_primary(self._client):
            while self._window and self._window[0][0] <= now - SETTLE_SECONDS:
                self._journal.settled(self._window.popleft()[1])
        self._next_settling = time.monotonic() + REPORT_SECONDS  # Sentinels that hang have taken their time

    def _push_again(self) -> int:
        self._window.clear()
        return self._journal.push_again()
