"""A worker that dies, as if by `kill -9`, at one step of its first job: `dying_worker.py STEP`."""

import os
import signal
import sys
from typing import Any

from rq import Queue

from worker.__main__ import main
from worker.rq_worker import PresenceWorker
from worker.store.store import Store


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_after_half(store: Store, events: list[Any], *rest: Any, **options: Any) -> None:
    apply(store, events[: len(events) // 2], *rest, **options)
    die()


apply = Store.apply

match sys.argv[1]:
    case "dequeued":  # in RQ's intermediate queue, in no registry
        PresenceWorker.prepare_execution = die  # type: ignore[method-assign]
    case "prepared":  # in the registry and still in the intermediate queue
        PresenceWorker.prepare_job_execution = die  # type: ignore[method-assign]
    case "half-applied":
        Store.apply = die_after_half  # type: ignore[method-assign,assignment]
    case "scheduling":  # a retry, for which presence must be away
        Queue.schedule_job = die  # type: ignore[method-assign]
    case "applied":  # before RQ has noted it
        PresenceWorker.handle_job_success = die  # type: ignore[method-assign]

sys.exit(main())
