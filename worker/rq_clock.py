"""The clock of this worker and of RQ in it, set to that of the queue's server.

RQ reads its machine's clock whenever it writes or compares a time: when a job counts as abandoned, when a retry is due,
when the last heartbeat of a worker was. If the clocks of machines differed, each worker would consider other jobs
abandoned and other retries due.
"""

import sys
from collections.abc import Callable
from datetime import UTC, datetime

from rq import utils


def now_ms() -> int:
    """Unix milliseconds by RQ's clock: the machine's until `set_rq_clock`, and always under plain `rq worker`."""
    return int(utils.now().timestamp() * 1000)


def set_rq_clock(clock: Callable[[], int]) -> None:
    """Makes all of RQ in this process use `clock`, which returns Unix milliseconds."""

    def now() -> datetime:
        return datetime.fromtimestamp(clock() / 1000, UTC)

    before = utils.now
    # RQ's modules import the function by name, so replace it in each; modules loaded later find ours in utils.
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "rq" and getattr(module, "now", None) is before:
            module.now = now  # type: ignore[attr-defined]
