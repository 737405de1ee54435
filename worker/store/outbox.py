"""Does what a Redis Cluster cannot do in one step with a user's hash, right after that step.

The stream, the leases and the counters live on other nodes than most users. So a change stays in the outbox of the
user's hash until it is on the stream. If a worker dies in between, the change stays there, and the next job with this
user, at the latest the retried batch, sends it. Each change is on the stream at least once.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from pydantic_core import from_json
from redis.exceptions import ResponseError

from shared.logs.throttle import LogThrottle
from shared.redis.backend import Backend
from shared.redis.client import is_outage
from shared.settings import Settings
from worker.store.replicas import Replicas
from worker.store.replies import OnCluster

_troubles = LogThrottle(logging.getLogger("worker.store"))


class Outbox:
    """Acts upon the replies of the functions in lua/. Every method raises RedisError.

    client: of a Cluster. function: the name of the first function on the server.
    """

    def __init__(self, client: Backend, settings: Settings, function: str, replicas: Replicas) -> None:
        self._client = client
        self._replicas = replicas
        self._keys = settings.keys
        self._changes_maxlen = settings.changes_maxlen
        self._function = function

    def carry_out(self, todo: Mapping[str, OnCluster]) -> None:
        """Sends what is in the outboxes, and notes the leases. todo: the last reply for each user's key."""
        leases = {self._keys.user_id(key): each.lease_ends_at_ms for key, each in todo.items() if each.lease_ends_at_ms}
        if leases:
            with self._goes_on(self._keys.leases):
                # Never later than the earliest lease; the sweep corrects an entry that is too early.
                self._client.zadd(self._keys.leases, leases, lt=True)
        outboxes = {key: each.outbox for key, each in todo.items() if each.outbox}
        if outboxes:
            self._send(outboxes)

    def _send(self, outboxes: dict[str, bytes]) -> None:
        changes = [(key, from_json(line)) for key, text in outboxes.items() for line in text.split(b"\n")]
        stream = self._client.pipeline(transaction=False)
        for _, entry in changes:
            fields = dict(zip(entry[::2], entry[1::2], strict=True))
            stream.xadd(self._keys.changes, fields, maxlen=self._changes_maxlen, approximate=True)
        for reply in self._replicas.execute(stream):
            if isinstance(reply, Exception):
                raise reply
        acknowledgements = self._client.pipeline(transaction=False)
        for key, text in outboxes.items():
            acknowledgements.execute_command(  # type: ignore[no-untyped-call]
                "FCALL", f"{self._function}_sent", 1, key, text
            )
        mine = {key for key, removed in zip(outboxes, acknowledgements.execute(), strict=True) if removed}
        self._count([dict(zip(entry[::2], entry[1::2], strict=True)) for key, entry in changes if key in mine])

    def _count(self, changes: list[dict[str, str]]) -> None:
        """Counts the users online; if a worker dies right before, the count is wrong by these few."""
        online = sum(each["status"] == "online" for each in changes)
        no_more = sum(each["previous"] == "online" for each in changes)
        if online != no_more:
            with self._goes_on(self._keys.stats):
                self._client.hincrby(self._keys.stats, "users_online", online - no_more)

    @contextmanager
    def _goes_on(self, key: str) -> Iterator[None]:
        """A key of a wrong type must not hold up presence; on one Redis the functions skip it too."""
        try:
            yield
        except ResponseError as error:
            if is_outage(error):
                raise
            _troubles.say(logging.ERROR, "the key %s cannot be written; rename or remove it: %s", key, error)

    def reschedule(self, due: Mapping[str, float], user_ids: Sequence[str], ends: Sequence[OnCluster | None]) -> None:
        """Corrects the leases that were due, after their users were reviewed, unless they have changed since.

        ends: for each user what the review replied, None if it failed.
        """
        pipeline = self._client.pipeline(transaction=False)
        for user_id, end in zip(user_ids, ends, strict=True):
            if end:
                was, ends_at = int(due[user_id]), "" if end.lease_ends_at_ms is None else end.lease_ends_at_ms
                pipeline.execute_command(  # type: ignore[no-untyped-call]
                    "FCALL", f"{self._function}_reschedule", 1, self._keys.leases, user_id, was, ends_at
                )
        pipeline.execute()
