"""Reports to the workers and `presence status`, on the queue's Redis, how far this receiver has come."""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from redis import Redis
from redis.exceptions import RedisError, ResponseError

from receiver.journal.journal import Journal
from receiver.relay.replay_window import ReplayWindow
from shared import reports
from shared.redis.client import is_outage
from shared.redis.clock import ServerClock
from shared.reports import Report

REPORT_SECONDS = 1.0
#: An event's `received_at` is a little earlier than its line in the journal.
SLACK_MS = 500

log = logging.getLogger("receiver.relay")


class Reporter:
    """For the relay's thread. key: the hash of all receivers' reports."""

    def __init__(self, client: Redis, key: str, journal: Journal, window: ReplayWindow) -> None:
        self._client = client
        self._key = key
        self._journal = journal
        self._window = window
        self._clock = ServerClock(client)
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._next = 0.0
        self._told = False
        self._watermark_ms = 0  # by our own clock
        self._healthy_at_ms = 0
        self._reported_as = ""
        #: The receivers whose reports are to be removed, since their journals are ours now.
        self._gone: set[str] = set()
        #: False as long as our report may still be there.
        self.signed_off = False

    @property
    def skew_ms(self) -> int:
        """How far this machine's clock is ahead of that of the queue's server."""
        return self._clock.skew_ms

    def follow(self, asked_at_ms: int) -> None:
        """Notes up to which time everything is on the queue.

        asked_at_ms: just before the last time the journal was asked for events, by this machine's clock.
        """
        oldest_ms = self._journal.oldest_ms()
        if not self._journal.knows_all():
            self._watermark_ms = 0
        elif oldest_ms is None:
            self._watermark_ms = asked_at_ms - SLACK_MS
        else:
            self._watermark_ms = max(0, min(asked_at_ms, oldest_ms) - SLACK_MS)

    def take_over(self, identities: Iterable[str]) -> None:
        """Reports for receivers that have ended, since the events that they accepted are in our journal now."""
        self._gone.update(identities)

    def report(self) -> bool:
        """Reports if it is time to; True if Redis has answered. Raises RedisError."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + REPORT_SECONDS
        self._clock.ask()
        report = self._make()
        if self._reported_as not in ("", report.id):  # our folder was removed, say
            self._gone.add(self._reported_as)
        self._gone.discard(report.id)
        if self._tell(lambda: self._client.hset(self._key, report.id, reports.encode(report))):
            self._reported_as = report.id
            # After our own report, which now includes theirs.
            if self._gone and self._tell(lambda: self._client.hdel(self._key, *self._gone)):
                self._gone.clear()
        return True

    def _make(self) -> Report:
        journal, now_ms = self._journal, self._clock.now_ms()
        if not journal.trouble:
            self._healthy_at_ms = now_ms
        return Report(
            self._name,
            at_ms=now_ms,
            watermark_ms=self._watermark_ms and self._watermark_ms - self._clock.skew_ms,
            events=journal.waiting_events,
            bytes=journal.waiting_bytes,
            trouble=journal.trouble,
            healthy_at_ms=self._healthy_at_ms,
            skew_ms=self._clock.skew_ms,
            id=journal.identity,
            unreadable=journal.unreadable_files(),
            kept_bytes=journal.kept_bytes,
            kept_reason=self._window.reason if journal.kept_events else "",
        )

    def sign_off(self) -> None:
        """Removes our report, when nothing waits any more."""
        identity = self._reported_as or self._journal.identity
        with suppress(RedisError):  # the stop must not wait for Redis
            self.signed_off = self._tell(lambda: self._client.hdel(self._key, identity))

    def _tell(self, command: Callable[[], object]) -> bool:
        try:
            command()
        except ResponseError as error:
            if is_outage(error):
                raise
            if not self._told:  # a key of a wrong type must not hold up events
                log.error("the key %s cannot be written; rename it, receivers report there: %s", self._key, error)
            self._told = True
            return False
        return True
