"""RQ's worker, made to recover in seconds where RQ takes minutes.

RQ 3.0 finds the job of a killed worker when its heartbeat has expired (job timeout + 60 s) and the next maintenance is
due (10 minutes, under a lock that a killed worker holds for 15). A job lost between queue and registry waits another
minute. Here each of these takes seconds and no lock, since applying a batch twice is harmless.
"""

import logging
import threading
import time
from typing import Any

from redis import Redis
from redis.exceptions import RedisError, ResponseError
from rq import Queue, SimpleWorker, utils
from rq.exceptions import NoSuchJobError, StopRequested
from rq.job import Job
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer
from rq.worker_registration import clean_worker_registry, register

from shared.logs.outage import Outage
from shared.queue import SKEW_FIELD, BatchJob, check_type
from shared.redis.client import is_outage, refresh_primary
from shared.redis.clock import ServerClock
from worker.heartbeat import Heartbeat
from worker.succession import PLACE_FIELD, Succession

#: A job that its worker has not finished after this time is run again by another.
ABANDONED_SECONDS = 15
MAINTENANCE_SECONDS = 3
#: How long a worker counts as alive after its last heartbeat.
ALIVE_SECONDS = 15
#: How long it is remembered after that, so that `presence status` can name one that froze.
REMEMBERED_SECONDS = 600
#: The length of one wait for a job; a signal takes effect only after it. Redis may take ANSWER_SECONDS longer.
DEQUEUE_SECONDS = 1
ANSWER_SECONDS = 4

log = logging.getLogger("worker")


class PresenceWorker(SimpleWorker):
    """Runs jobs in its own process, one after the other, and keeps its connections.

    name, succession: of this process, over all workers that it starts after outages. clock: of the queue's server; see
    worker/rq_clock.py. Raises the errors on which RQ's own loop gives up; then start another worker.
    """

    # RQ's pause after a lost connection doubles up to this many seconds.
    max_connection_wait_time = 2.0

    def __init__(
        self,
        name: str,
        queue: Queue,
        connection: Redis,
        outage: Outage,
        stopping: threading.Event,
        heartbeat: Heartbeat,
        clock: ServerClock,
        succession: Succession,
    ) -> None:
        self._outage = outage
        self._succession = succession
        self._clock = clock
        self._heartbeat = heartbeat
        self._stopping = stopping
        self._stuck_since: dict[str, float] = {}
        self._troubles: set[str] = set()
        super().__init__(
            [queue],
            name=name,
            connection=connection,
            job_class=BatchJob,
            serializer=JSONSerializer,
            worker_ttl=ALIVE_SECONDS,
            maintenance_interval=MAINTENANCE_SECONDS,
            log_job_description=False,
        )

    @property
    def dequeue_timeout(self) -> int:
        return DEQUEUE_SECONDS

    @property
    def connection_timeout(self) -> int:
        return DEQUEUE_SECONDS + ANSWER_SECONDS

    # Heartbeats

    def register_birth(self) -> None:
        self.connection.delete(self.key)  # from before an outage; RQ would take it for another worker of this name
        super().register_birth()  # type: ignore[no-untyped-call]

    def serialize(self) -> dict[Any, Any]:
        ours = {SKEW_FIELD: self._clock.skew_ms, PLACE_FIELD: self._succession.place}
        return {**super().serialize(), **ours}

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        return ABANDONED_SECONDS

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        self._heartbeat.beat()
        try:
            super().heartbeat(max(timeout or 0, REMEMBERED_SECONDS), pipeline)
        except RedisError as error:
            self._outage.failed(error)
            if self._stopping.is_set():
                raise StopRequested from error  # else RQ's loop would try until Redis is back
            raise
        if pipeline is None:
            self._outage.over()

    # Maintenance

    def run_maintenance_tasks(self) -> None:
        self._clock.ask()
        refresh_primary(self.connection)  # if there is a new primary, receivers push events there
        for queue in self.queues:
            check_type(queue)
        for step in (
            *(self._retry_abandoned, self._rescue_stuck, self._promote_scheduled),
            *(self._replace_killed, clean_worker_registry),
        ):
            for queue in self.queues:
                try:
                    step(queue)
                except ResponseError as error:
                    if is_outage(error):
                        raise
                    self._complain(f"a key of RQ's is wrong: {error}")
        self._register_again()
        self.last_cleaned_at = utils.now()  # type: ignore[assignment]  # RQ declares None

    def _complain(self, trouble: str) -> None:
        """Logs each trouble once, not every MAINTENANCE_SECONDS."""
        if trouble not in self._troubles:
            self._troubles.add(trouble)
            log.error(trouble)

    def _retry_abandoned(self, queue: Queue) -> None:
        StartedJobRegistry(queue=queue, job_class=self.job_class).cleanup()

    def _promote_scheduled(self, queue: Queue) -> None:
        """Queues the jobs whose pause is over. RQ's scheduler would take a lock for a minute."""
        registry = queue.scheduled_job_registry
        for job_id in registry.get_jobs_to_schedule():
            with self.connection.pipeline() as transaction:
                try:
                    job = self.job_class.fetch(job_id, self.connection, self.serializer)
                    queue.enqueue_job(job, pipeline=transaction)
                except NoSuchJobError:
                    self._complain(f"the scheduled job {job_id} is gone")
                registry.remove(job_id, pipeline=transaction)
                transaction.execute()

    def _rescue_stuck(self, queue: Queue) -> None:
        """Puts back jobs that a worker took off the queue but was killed before it started them."""
        stuck = queue.intermediate_queue
        started = set(queue.started_job_registry.get_job_ids(cleanup=False))
        seen_at = time.monotonic()
        self._stuck_since = {job_id: self._stuck_since.get(job_id, seen_at) for job_id in stuck.get_job_ids()}
        for job_id, since in self._stuck_since.items():
            if seen_at - since < ABANDONED_SECONDS or job_id in started:
                continue
            with self.connection.pipeline() as transaction:
                transaction.lrem(stuck.key, 1, job_id)
                if Job.exists(job_id, self.connection):
                    transaction.lpush(queue.key, job_id)
                transaction.execute()

    def _replace_killed(self, queue: Queue) -> None:
        if name := self._succession.replace_one(queue, self.connection):
            log.info("this worker replaces worker %s, which was killed on this machine", name)

    def _register_again(self) -> None:
        """Registers this worker again: after a long time without Redis it was removed, and RQ would not add it."""
        with self.connection.pipeline() as transaction:
            transaction.hset(self.key, mapping=self.serialize())
            transaction.expire(self.key, REMEMBERED_SECONDS)
            register(self, transaction)
            transaction.execute()

    # Start and stop

    def _install_signal_handlers(self) -> None:
        """Installs none: the process has its own, which set `stopping`. RQ's would raise at any point of the code."""

    @property
    def _stop_requested(self) -> bool:
        """RQ's own flag, which it reads between jobs and while it is suspended."""
        self._heartbeat.beat()
        return self._stopping.is_set()

    @_stop_requested.setter
    def _stop_requested(self, value: bool) -> None:
        pass

    @property
    def should_run_maintenance_tasks(self) -> bool:
        # RQ reads this before each wait for a job, when it has none, and does not read its own flag there.
        self._heartbeat.beat()
        if self._stopping.is_set():
            raise StopRequested
        return bool(super().should_run_maintenance_tasks)

    def subscribe(self) -> None:
        """Does not listen for RQ's remote commands: that thread does not survive every outage of Redis."""

    def unsubscribe(self) -> None:
        pass

    def teardown(self) -> None:
        try:
            super().teardown()  # type: ignore[no-untyped-call]
        except RedisError:
            log.debug("could not sign off; the heartbeat will expire")
