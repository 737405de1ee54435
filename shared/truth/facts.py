"""Reads what we know from the servers: users' hashes, gateway processes, and users who can prove that these answer.

Every function raises RedisError.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

from redis import Redis

from openim_presence.keys import Keys
from shared.gateways import records
from shared.gateways.batches import Name
from shared.gateways.process import Process
from shared.redis.backend import Backend
from shared.truth.ours import Ours, read
from shared.truth.reach import Reach

#: How many users of each process every question includes: one is enough, and three more are for when that one has left.
WITNESSES = 4
#: How many witnesses one question includes in all.
MOST_WITNESSES = 200


def read_users(presence: Backend, keys: Keys, user_ids: Sequence[str]) -> dict[str, Ours]:
    """What we hold of the users, without those whose key cannot be read."""
    pipeline = presence.pipeline(transaction=False)
    for user_id in user_ids:
        key: Any = keys.user(user_id).encode(errors="surrogatepass")  # a lone surrogate is in no user's id
        pipeline.hgetall(key)
    found: dict[str, Ours] = {}
    for user_id, fields in zip(user_ids, pipeline.execute(raise_on_error=False), strict=True):
        with suppress(ValueError):
            if isinstance(fields, dict):
                found[user_id] = read(user_id, fields)
    return found


def read_gateways(queue: Redis, keys: Keys) -> dict[Name, Process]:
    """The known gateway processes."""
    fields: Any = queue.hgetall(keys.gateways)
    return records.decode_all(fields)


def find_witnesses(
    presence: Backend, keys: Keys, processes: Mapping[Name, Process], proven: Mapping[Name, str], now_ms: int
) -> list[Ours]:
    """Users who are online at these processes, as far as we know: at most WITNESSES for each.

    proven: for each process, the user who was in OpenIM's last answer.
    """
    reach = Reach(processes, now_ms)
    candidates = {
        name: [*([proven[name]] if name in proven else ()), *(user for user, _ in reversed(processes[name].witnesses))]
        for name in reach.live()
    }
    known = read_users(presence, keys, list({user: 1 for users in candidates.values() for user in users}))
    most = max(1, min(WITNESSES, MOST_WITNESSES // max(1, len(candidates))))
    found: dict[str, Ours] = {}
    for name, users in candidates.items():
        at_home = (known[user] for user in dict.fromkeys(users) if user in known and _is_at(reach, known[user], name))
        found |= {ours.user_id: ours for ours in islice(at_home, most)}
    return list(found.values())[:MOST_WITNESSES]


def _is_at(reach: Reach, ours: Ours, name: Name) -> bool:
    homes: Iterable[Any] = (reach.home(ours, platform_id) for platform_id in ours.platforms())
    return any(home and home.name == name and not home.is_over for home in homes)
