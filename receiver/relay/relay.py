"""The relay: carries events from the journal to the queue, in its own thread.

Events go in batches. If a batch is not full, a pause follows it; and before a batch the relay waits a moment for events
that belong to the first one. Events leave the journal only when Redis can no longer lose them (replay_window.py). Once
a second the relay also reports how far it has come (reporter.py).
"""

import logging
import threading
import time
from typing import Any

from redis.exceptions import RedisError

from receiver.journal.journal import Journal
from receiver.relay.pusher import Pusher
from receiver.relay.replay_window import ReplayWindow
from receiver.relay.reporter import Reporter
from shared.events import received_at
from shared.logs.outage import Outage
from shared.queue import open_queue
from shared.redis.checks import durability_risk, incompatibility, queue_variable, read_info
from shared.redis.client import connect
from shared.settings import Settings, without_password

BATCH_EVENTS = 4000  # RQ spends the same time on a job, however many events it has
#: The wait from the first waiting event to its push. The two senders of an OpenIM gateway post a batch of callbacks
#: within about this time, and readers should see only its result.
GATHER_SECONDS = 0.015
#: The pause between two pushes: PACE_FACTOR times as long as the last push, within these bounds. A push takes about
#: 0.5 ms of the interpreter that the requests share, for one event as for hundreds, and makes a job for a worker.
PACE_SECONDS = 0.015
PACE_FACTOR = 40
PACE_MOST_SECONDS = 0.1
IDLE_SECONDS = 1.0
ADOPT_SECONDS = 5.0
#: How long a folder must be without its process: one that was killed is restarted, and takes its own folder back.
PATIENCE_SECONDS = 4.0
PUSH_TIMEOUT_SECONDS = 5.0

log = logging.getLogger("receiver.relay")


class Relay(threading.Thread):
    """Runs until `stop`. Only it reads, settles and adopts in the journal."""

    def __init__(self, journal: Journal, settings: Settings) -> None:
        super().__init__(name="relay", daemon=True)
        self._journal = journal
        self._client = connect(settings.queue_url, timeout=PUSH_TIMEOUT_SECONDS, on_connect=self._greet)
        self._pusher = Pusher(open_queue(self._client, settings))
        self._variable = queue_variable(settings)
        #: The run id of the server to which the connection leads.
        self._run_id = ""
        #: Remarks about the server that were already logged.
        self._remarks: set[str] = set()
        self._window = ReplayWindow(journal, self._client, lambda: self._run_id)
        self._reporter = Reporter(self._client, settings.keys.receivers, journal, self._window)
        self._outage = Outage(log, f"Redis for the queue, {without_password(settings.queue_url)},")
        self._disk = Outage(log, f"the journal directory {settings.journal_dir}")
        self._waiting = threading.Event()
        self._waiting_since = 0.0  # by time.monotonic()
        self._stopping = threading.Event()
        self._deadline = float("inf")
        self._next_adoption = 0.0
        #: How many pushes succeeded and failed.
        self.pushes_ok = 0
        self.pushes_failed = 0

    @property
    def redis_is_up(self) -> bool:
        return not self._outage.is_on

    @property
    def kept_reason(self) -> str:
        """Why events that Redis has stay in the journal for longer than usual, or ""."""
        return self._window.reason if self._journal.kept_events else ""

    @property
    def signed_off(self) -> bool:
        """Whether no report of this receiver is left in Redis, now that the relay has ended."""
        return self._reporter.signed_off

    def wake(self) -> None:
        """Says that the journal has an event. Cheap, for any thread."""
        if not self._waiting.is_set():
            self._waiting_since = time.monotonic()
            self._waiting.set()

    def stop(self, grace_seconds: float) -> None:
        """Pushes what waits, but ends after that time; the rest stays in the journal."""
        self._deadline = time.monotonic() + grace_seconds
        self._stopping.set()
        self._waiting.set()
        self.join(grace_seconds + 1)

    def run(self) -> None:
        while time.monotonic() < self._deadline:
            try:
                if self._turn() and self._stopping.is_set():
                    self._reporter.sign_off()
                    return
                self._disk.over()
            except RedisError as error:
                self._rest(self._outage.failed(error))
            except OSError as error:
                self._rest(self._disk.failed(error))
            except Exception:
                # If a bug ended this thread, nothing would be lost, but nobody would notice either.
                log.exception("an error in the relay, which goes on")
                self._rest(1.0)

    def _rest(self, seconds: float) -> None:
        if self._stopping.is_set():
            time.sleep(min(seconds, 0.1))  # the deadline is near
        else:
            self._stopping.wait(seconds)

    def _turn(self) -> bool:
        """Pushes one batch, or waits for one; True if there was nothing to push."""
        self._adopt()
        self._gather()
        self._waiting.clear()
        asked_at_ms = time.time_ns() // 1_000_000
        # One event is enough to see whether Redis is back. With 4,000, redis-py takes 15 ms to word each refusal.
        batch = self._journal.next_batch(1 if self._outage.is_on else BATCH_EVENTS)
        self._reporter.follow(asked_at_ms)
        if batch is None:
            self._report()
            if not self._stopping.is_set():
                self._waiting.wait(IDLE_SECONDS)
            return True
        started_at = time.monotonic()
        pushing = bool(batch.payloads)
        if pushing:
            self._push(batch.payloads)
            self._outage.over()
        self._journal.pushed(batch)
        self._window.add(batch)
        batch.payloads.clear()
        if pushing:
            self._window.settle()  # last, because it may undo all of this
            self._report()
        if batch.lines < BATCH_EVENTS:
            took = time.monotonic() - started_at
            self._stopping.wait(min(max(PACE_SECONDS, PACE_FACTOR * took), PACE_MOST_SECONDS))
        return False

    def _gather(self) -> None:
        """Waits until GATHER_SECONDS after the first waiting event."""
        if self._waiting.is_set():
            self._stopping.wait(max(0.0, self._waiting_since + GATHER_SECONDS - time.monotonic()))

    def _push(self, payloads: list[bytes]) -> None:
        try:
            self._pusher.push(payloads, received_at(payloads[0]), self._reporter.skew_ms)
        except RedisError:
            self.pushes_failed += 1
            raise
        self.pushes_ok += 1

    def _report(self) -> None:
        if self._reporter.report():
            self._outage.over()
            self._window.settle()

    def _adopt(self) -> None:
        now = time.monotonic()
        if now >= self._next_adoption:
            self._next_adoption = now + ADOPT_SECONDS
            self._reporter.take_over(self._journal.adopt_orphans(PATIENCE_SECONDS))

    def _greet(self, connection: Any) -> None:
        """Runs at each new connection, including those that redis-py makes silently."""
        connection.on_connect()
        connection.send_command("INFO")
        reply = connection.read_response()
        info = read_info(reply.decode(errors="replace") if isinstance(reply, bytes) else str(reply))
        self._run_id = info.get("run_id", "")
        # Whatever server it is, events are accepted, and wait in the journal if necessary.
        for remark in filter(None, {incompatibility(info), durability_risk(info)} - self._remarks):
            self._remarks.add(remark)
            log.warning("%s: %s", self._variable, remark)
