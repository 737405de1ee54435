"""The clock of this worker and of RQ in it, set to that of the queue's server.

RQ reads the clock of its machine wherever it writes or compares a time: when a job counts as abandoned, when a retry is
due, when a worker gave its last sign of life. Workers on machines whose clocks differ would each see other jobs as
abandoned and other retries as due.
"""

import sys
from collections.abc import Callable
from datetime import UTC, datetime

from rq import utils


def now_ms() -> int:
    """Unix milliseconds by RQ's clock: that of the machine until `set_rq_clock`, and under plain `rq worker`."""
    return int(utils.now().timestamp() * 1000)


def set_rq_clock(clock: Callable[[], int]) -> None:
    """Makes all of RQ in this process go by `clock`, Unix milliseconds."""

    def now() -> datetime:
        return datetime.fromtimestamp(clock() / 1000, UTC)

    before = utils.now
    # RQ's modules import the function by its name, so each of them has it; those that come later find ours in utils.
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "rq" and getattr(module, "now", None) is before:
            module.now = now  # type: ignore[attr-defined]
