"""Corrections as events, which go through the queue and the store like any other. Pure."""

from shared.events import Event
from shared.truth.verdict import Verdict


def events(verdict: Verdict, now_ms: int) -> list[Event]:
    """They have no operationID, so each is a batch of its own. now_ms: by the clock of the queue's server."""
    return [
        Event(
            verdict.user_id,
            "reconciled_online" if is_online else "reconciled_offline",
            seq,
            scope.conn_id,
            scope.platform_id,
            "",
            "",
            now_ms,
        )
        for scope, is_online, seq in verdict.corrections
    ]
