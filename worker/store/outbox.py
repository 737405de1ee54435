"""What a Redis Cluster cannot do in one step with a user's hash, done right after it.

The stream, the leases and the counters live on other nodes than most users. So a change stays in the outbox of the
user's hash until it is on the stream: a worker that dies in between leaves it there, and whoever comes to this user
next, the retried batch at the latest, sends it. Each change is on the stream at least once.
"""

from collections.abc import Sequence
from typing import Any

from pydantic_core import from_json
from redis import Redis

from shared.settings import Settings
from worker.store.replicas import Replicas


class Outbox:
    """Acts upon replies of presence.lua.

    client: a `shared.redis.cluster.Cluster`. function: its name on the server. Every method raises RedisError.
    """

    def __init__(self, client: Redis, settings: Settings, function: str, replicas: Replicas) -> None:
        self._client = client
        self._replicas = replicas
        self._keys = settings.keys
        self._changes_maxlen = settings.changes_maxlen
        self._function = function

    def carry_out(self, user_keys: Sequence[str], replies: Sequence[Any]) -> None:
        """Sends what is in the outboxes, and notes the leases. A user's last reply has all that is to do."""
        last = {key: reply for key, reply in zip(user_keys, replies, strict=True) if not isinstance(reply, Exception)}
        leases = {self._keys.user_id(key): int(reply[3]) for key, reply in last.items() if reply[3]}
        if leases:
            # Never later than the earliest lease; the sweep corrects what is too early.
            self._client.zadd(self._keys.leases, leases, lt=True)
        outboxes = {key: reply[2] for key, reply in last.items() if reply[2]}
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
        """Counts who is online; a worker that dies right before makes it wrong by these few."""
        online = sum(each["status"] == "online" for each in changes)
        no_more = sum(each["previous"] == "online" for each in changes)
        if online != no_more:
            self._client.hincrby(self._keys.stats, "users_online", online - no_more)

    def reschedule(self, due: dict[str, float], user_ids: Sequence[str], replies: Sequence[Any]) -> None:
        """Corrects the leases that were due, after their users were reviewed, unless they have changed since."""
        pipeline = self._client.pipeline(transaction=False)
        for user_id, reply in zip(user_ids, replies, strict=True):
            if not isinstance(reply, Exception):
                pipeline.execute_command(  # type: ignore[no-untyped-call]
                    "FCALL", f"{self._function}_reschedule", 1, self._keys.leases, user_id, int(due[user_id]), reply[3]
                )
        pipeline.execute()
