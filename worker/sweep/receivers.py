"""Reads the reports of receivers for the sweep."""

import logging
from typing import Any

from redis import Redis

from openim_presence.keys import Keys
from shared import reports
from shared.errors import Unavailable
from shared.reports import Report

#: Reports of receivers that are gone are kept at least this long, for people to see.
KEPT_MS = 3_600_000

log = logging.getLogger("worker.leases")


def read_reports(client: Redis, keys: Keys, now_ms: int, lease_ms: int) -> list[Report]:
    """The reports, without those of receivers that are long gone, which it deletes.

    now_ms: by the clock of the queue's server. Raises RedisError; Unavailable if a field is not a report.
    """
    found: Any = client.hgetall(keys.receivers)
    kept = []
    for name, text in found.items():
        try:
            report = reports.decode(name, text)
        except ValueError as error:
            field = f"the field {name.decode(errors='replace')} of {keys.receivers}"
            raise Unavailable(f"{field} is {error}; remove it with HDEL") from None
        if report.at_ms < now_ms - max(KEPT_MS, lease_ms):
            log.warning("the receiver %s is gone; its journal had %d events", report.name, report.events)
            client.hdel(keys.receivers, name)
        else:
            kept.append(report)
    return kept
