"""Gives existing users the lease and the retention that are set now."""

import logging
import time
from collections.abc import Iterator
from itertools import islice

from shared.settings import Settings
from worker.store.store import PIPELINE_EVENTS, Store

#: The part of each second that the walk may take.
WALK_SECONDS = 0.3

#: The settings of somebody who uses neither.
NEITHER = "0/0"

log = logging.getLogger("worker.leases")


class Backfill:
    """Walks through all users, a little in each sweep."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        #: The settings that all users should have, in the form in which `presence-sweep` holds those that they have.
        self.wanted = f"{settings.online_lease_seconds}/{settings.retention_seconds}"
        self._walk: Iterator[str] | None = None

    def give(self, now_ms: int, had: str) -> bool:
        """Walks on; True if all users have the new settings.

        now_ms: the beginning of leases that have none yet. had: the settings that users have, in the form of `wanted`;
        the same as those if only the server is another. Raises Unavailable.
        """
        level = logging.INFO if {had, self.wanted} != {NEITHER} else logging.DEBUG
        if self._walk is None:
            cause = (
                "lease or retention has changed" if had != self.wanted else "presence's Redis was restarted or replaced"
            )
            log.log(level, "%s: all users get the lease and the retention that are set now", cause)
            self._walk = self._store.user_ids()
        rest_at = time.monotonic() + WALK_SECONDS
        while user_ids := list(islice(self._walk, PIPELINE_EVENTS)):
            self._store.review(user_ids, 0, now_ms)
            if time.monotonic() > rest_at:
                return False
        self._walk = None
        log.log(level, "all users have the lease and the retention that are set now")
        return True

    def break_off(self) -> None:
        """Makes the next walk start from the beginning."""
        self._walk = None
