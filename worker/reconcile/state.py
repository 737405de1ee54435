"""What another worker must know to go on where this one stopped, on the queue's server."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice
from typing import Any

from pydantic import ValidationError
from redis import Redis

from openim_presence.keys import Keys
from shared.truth.findings import Tally
from worker.reconcile.triggers import SEEN, Seen

PUSHED = 1000


@dataclass(slots=True)
class Round:
    """One pass over users. began_ms: by the clock of the queue's server. is_listed: 1 once the list of users to compare
    is complete. wants_all: 1 if the next round is about all of OpenIM's users, whatever its number.
    """

    number: int = 0
    began_ms: int = 0
    is_listed: int = 0
    wants_all: int = 0


class State:
    """Every method raises RedisError."""

    def __init__(self, queue: Redis, keys: Keys) -> None:
        self._queue = queue
        self._key = keys.reconcile
        self._todo = keys.reconcile_todo

    def read(self) -> tuple[Round, Tally, Seen | None]:
        """The round, what it has counted so far, and what was seen at the last look."""
        found: Any = self._queue.hgetall(self._key)
        text = {name.decode(): value.decode() for name, value in found.items()}

        def numbers(kind: type[Any], prefix: str) -> dict[str, int]:
            names = (field.name for field in fields(kind))
            return {name: int(text[prefix + name]) for name in names if text.get(prefix + name, "").isdecimal()}

        try:
            seen = SEEN.validate_json(text.get("seen", ""))
        except ValidationError:
            seen = None
        return Round(**numbers(Round, "round:")), Tally(**numbers(Tally, "tally:")), seen

    def write_round(self, now: Round) -> None:
        self._write({f"round:{name}": value for name, value in asdict(now).items()})

    def write_tally(self, tally: Tally) -> None:
        self._write({f"tally:{name}": value for name, value in asdict(tally).items()})

    def write_seen(self, seen: Seen) -> None:
        self._write({"seen": SEEN.dump_json(seen)})

    def _write(self, values: dict[Any, Any]) -> None:
        self._queue.hset(self._key, mapping=values)

    # The users still to be compared in this round.

    def add(self, user_ids: Iterable[str]) -> None:
        remaining = iter(user_ids)
        while some := list(islice(remaining, PUSHED)):
            self._queue.rpush(self._todo, *some)

    def first(self, count: int) -> list[str]:
        found: Any = self._queue.lrange(self._todo, 0, count - 1)
        return [user_id.decode(errors="replace") for user_id in found]

    def left(self) -> int:
        """How many they are."""
        found: Any = self._queue.llen(self._todo)
        return int(found)

    def done(self, count: int, again: Sequence[str] = ()) -> None:
        """Removes the first `count` of them, and adds those to ask about again if this worker stops."""
        with self._queue.pipeline() as transaction:
            transaction.ltrim(self._todo, count, -1)
            if again:
                transaction.rpush(self._todo, *again)
            transaction.execute()

    def clear(self) -> None:
        self._queue.delete(self._todo)
