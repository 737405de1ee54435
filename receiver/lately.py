"""What came lately, for `/readyz` and `presence status`. For the event loop's thread only, and of bounded size."""

import time

from receiver.callback import Refusal
from shared.events import Event
from shared.observe.edge import LastCallback, RefusedLately, added_up, newest_callbacks

#: A reason is forgotten this long after its last refusal.
LATELY_MS = 600_000
#: How many characters are kept of texts that a peer may have chosen.
NAME_MOST, DETAIL_MOST = 100, 200


class Lately:
    """accepted: the newest event of each command. The request path writes it directly, which costs nothing."""

    def __init__(self) -> None:
        self.accepted: dict[str, Event] = {}
        self._foreign: LastCallback | None = None
        #: Reasons are fixed texts of ours, so there are few.
        self._refused: dict[tuple[int, str, bool], RefusedLately] = {}

    def foreign(self, command: str, peer: str) -> None:
        """One of OpenIM's other callbacks, whether it is forwarded or not."""
        self._foreign = LastCallback(command[:NAME_MOST], _now_ms(), peer)

    def refused(self, refusal: Refusal, peer: str, probe: bool) -> None:
        now = _now_ms()
        key = refusal.status, refusal.message, probe
        before = self._refused.get(key)
        count, since = (before.count, before.since_ms) if before and now - before.at_ms < LATELY_MS else (0, now)
        self._refused[key] = RefusedLately(
            refusal.status, refusal.message, refusal.detail[:DETAIL_MOST], peer, count + 1, since, now, probe
        )

    def callbacks(self) -> tuple[LastCallback, ...]:
        """The newest first."""
        taken = [LastCallback(each.command, each.received_at, each.peer) for each in self.accepted.values()]
        return newest_callbacks([*taken, self._foreign] if self._foreign else taken)

    def refusals(self) -> tuple[RefusedLately, ...]:
        """First what OpenIM may have sent, then probes, each the newest first."""
        now = _now_ms()
        return added_up(each for each in self._refused.values() if now - each.at_ms < LATELY_MS)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
