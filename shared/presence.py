"""Reading presence, for programs that may import this package; the keys alone do as well."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Literal

from redis import Redis

from shared.keys import Keys

CHUNK = 1000

#: The public fields of a user's hash; others are private.
FIELDS = (
    "status",
    "seq",
    "changed_at",
    "updated_at",
    "command",
    "conn_id",
    "platform_id",
    "platform",
    "operation_id",
    "sessions",
)


@dataclass(frozen=True, slots=True)
class Presence:
    """What is known of one user. For a user never heard of, status is "unknown" and nothing else is set.

    seq is decimal: it may exceed what JavaScript's numbers hold. changed_at, updated_at: Unix milliseconds.
    """

    user_id: str
    status: Literal["online", "offline", "unknown"]
    seq: str = ""
    changed_at: int = 0
    updated_at: int = 0
    command: str = ""
    conn_id: str = ""
    platform_id: str = ""
    platform: str = ""
    operation_id: str = ""
    sessions: int = 0

    def as_json(self) -> dict[str, Any]:
        """The fields for programs; of an unknown user only user_id and status."""
        if self.status == "unknown":
            return {"user_id": self.user_id, "status": self.status}
        return asdict(self)


def read(client: "Redis", keys: Keys, user_ids: Iterable[str]) -> Iterator[Presence]:
    """Presence of users, in their order, a round trip for each thousand.

    Raises redis-py's RedisError; the client must not decode responses.
    """
    remaining = iter(user_ids)
    while chunk := list(islice(remaining, CHUNK)):
        pipeline = client.pipeline(transaction=False)
        for user_id in chunk:
            pipeline.hmget(keys.user(user_id), FIELDS)
        for user_id, values in zip(chunk, pipeline.execute(), strict=True):
            yield _presence(user_id, values)


def _presence(user_id: str, values: list[bytes | None]) -> Presence:
    found: dict[str, Any] = {
        name: value.decode() for name, value in zip(FIELDS, values, strict=True) if value is not None
    }
    if "status" not in found:
        return Presence(user_id, "unknown")
    for name in ("changed_at", "updated_at", "sessions"):
        found[name] = int(found.get(name, 0))
    return Presence(user_id, **found)
