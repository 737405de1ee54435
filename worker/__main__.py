"""`python -m worker`: one RQ worker, until SIGTERM or Ctrl-C."""

import gc
import logging
import signal
import sys
import threading
from contextlib import suppress
from uuid import uuid4

from redis.exceptions import RedisError

from shared.errors import PresenceError
from shared.logs import setup as logs
from shared.logs import streams
from shared.logs.outage import Outage
from shared.queue import check_type, open_queue
from shared.redis.backend import Backend
from shared.redis.checks import inspect, queue_variable
from shared.redis.client import connect, is_outage
from shared.redis.clock import ServerClock
from shared.settings import Settings, load, without_password
from worker import admin, jobs
from worker.heartbeat import Heartbeat
from worker.rq_clock import set_rq_clock
from worker.rq_worker import PresenceWorker
from worker.store.store import Poison
from worker.succession import Succession
from worker.sweep.sweeper import Sweeper

#: The name in a stack trace. The job itself has logged this error, with the event.
_POISON = f"{Poison.__module__}.{Poison.__qualname__}"

#: How long a worker that stops waits for a question to OpenIM.
STOP_SECONDS = 6.0

#: More objects than a batch makes, none of which is in a cycle: looking for cycles took a fifth of the worker's Python.
GC_THRESHOLD = 50_000

log = logging.getLogger("worker")


class _OneLine(logging.Filter):
    """Makes one line of each of RQ's messages, without stack trace, and drops those about outages: Outage logs them."""

    def filter(self, record: logging.LogRecord) -> bool:
        arguments = record.args if isinstance(record.args, tuple) else ()
        error = record.exc_info[1] if record.exc_info else None
        if any(isinstance(each, Exception) and is_outage(each) for each in (*arguments, error)):
            return False
        lines = record.getMessage().strip().splitlines()
        if lines[-1].startswith(_POISON):
            return False
        text = lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"
        record.msg, record.args = (f"{text} {error!r}" if error else text), ()
        record.exc_info = record.exc_text = None
        return True


def work(settings: Settings, stopping: threading.Event) -> None:
    """Works until `stopping` is set. If RQ's loop gives up after an error of Redis, a new one starts."""
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    where = without_password(settings.queue_url)
    outage = Outage(log, f"Redis for the queue, {where},")
    heartbeat = Heartbeat()
    if settings.worker_admin_port:
        admin.serve(settings, admin.Pages(settings, heartbeat, outage, jobs.outage()))
    log.info("working on the queue %s at %s", settings.keys.queue, where)
    inspected = False
    name = uuid4().hex
    succession = Succession(name)
    Sweeper(settings, stopping).start()
    reconciler = _start_reconciler(settings, stopping)
    while not stopping.is_set():
        heartbeat.beat()
        connection = connect(settings.queue_url)
        try:
            if not inspected:
                _inspect(settings, connection)
                inspected = True
            jobs.prepare()
            queue = open_queue(connection, settings)
            check_type(queue)
            clock = ServerClock(connection)
            clock.ask()
            set_rq_clock(clock.now_ms)
            worker = PresenceWorker(name, queue, connection, outage, stopping, heartbeat, clock, succession)
            worker.work(logging_level="WARNING")
            stopping.wait(1.0)
        except RedisError as error:
            stopping.wait(outage.failed(error))
        finally:
            connection.close()
    if reconciler:
        reconciler.join(STOP_SECONDS)  # so that another worker has the turn at once
    log.info("stopped")


def _start_reconciler(settings: Settings, stopping: threading.Event) -> threading.Thread | None:
    if not settings.reconcile_seconds:
        return None
    from worker.reconcile.reconciler import Reconciler  # takes memory that other workers do not need

    reconciler = Reconciler(settings, stopping)
    reconciler.start()
    return reconciler


def _inspect(settings: Settings, queue: Backend) -> None:
    """Checks both servers. Raises SettingsError if one cannot be used, RedisError if the queue's does not answer."""
    inspect(queue, queue_variable(settings), log)
    if settings.redis_url != settings.queue_url:
        with suppress(RedisError), connect(settings.redis_url) as presence:  # if it is away, jobs will wait
            inspect(presence, "PRESENCE_REDIS_URL", log)


def main() -> int:
    streams.take_over()
    try:
        settings = load()
        logs.set_up(settings.log_level, settings.log_format)
        logging.getLogger("rq").setLevel(logging.WARNING)  # its debug lines, in colours, do not mention events
        logging.getLogger("rq.worker").addFilter(_OneLine())
        stopping = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopping.set())
        work(settings, stopping)
    except PresenceError as error:
        print(f"worker: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
