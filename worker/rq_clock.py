"""RQ's clock, set to that of the queue's server.

RQ reads the clock of its machine wherever it writes or compares a time: when a job counts as abandoned, when a retry is
due, when a worker gave its last sign of life. Workers on machines whose clocks differ would each see other jobs as
abandoned and other retries as due.
"""

import sys
from collections.abc import Callable
from datetime import UTC, datetime

from rq import utils


def set_rq_clock(now_ms: Callable[[], int]) -> None:
    """Makes all of RQ in this process go by `now_ms`, Unix milliseconds."""

    def now() -> datetime:
        return datetime.fromtimestamp(now_ms() / 1000, UTC)

    before = utils.now
    # RQ's modules import the function by its name, so each of them has it; those that come later find ours in utils.
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "rq" and getattr(module, "now", None) is before:
            module.now = now  # type: ignore[attr-defined]
