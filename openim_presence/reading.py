"""Reading presence, for programs that may import this package; the keys alone do as well.

    from redis import Redis
    from openim_presence import reading as presence

    for user in presence.read(Redis(), ["alice", "bob"]):
        print(user.user_id, user.status)

Every function takes a Redis or a RedisCluster, with decode_responses or without, and has a twin for asyncio. All raise
redis-py's RedisError where the server cannot answer. What is wrong with one user's key (another type, say) is in that
user's `error`, and stops nobody else's.
"""

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Literal

from redis import Redis, RedisCluster
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio import RedisCluster as AsyncRedisCluster
from redis.client import NEVER_DECODE
from redis.exceptions import ResponseError

from openim_presence.keys import Keys

Client = Redis | RedisCluster
AsyncClient = AsyncRedis | AsyncRedisCluster

DEFAULT = Keys("presence")
#: Users in one round trip (on a Cluster: one to each node).
CHUNK = 1000
# With one bad byte in one field, a client with decode_responses would otherwise lose the answers of a whole chunk.
_AS_BYTES: dict[str, Any] = {NEVER_DECODE: True}

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
    "platforms",
)
_NUMBERS = ("changed_at", "updated_at", "sessions")


@dataclass(frozen=True, slots=True)
class Presence:
    """What is known of one user. For a user never heard of, status is "unknown" and nothing else is set.

    seq is decimal: it may exceed what JavaScript's numbers hold. changed_at, updated_at: Unix milliseconds.
    platforms: ids of those with an online session, ascending (1 iOS, 2 Android, 5 web, ...); empty where none is known.
    error: what is wrong with the key, where something is; status is then "unknown" unless it could be read.
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
    platforms: tuple[int, ...] = ()
    error: str = ""

    def as_json(self) -> dict[str, Any]:
        """The fields for programs; of an unknown user only user_id and status, and error only where there is one."""
        known = {"user_id": self.user_id, "status": self.status} if self.status == "unknown" else asdict(self)
        known.pop("error", None)
        if "platforms" in known:
            known["platforms"] = ",".join(map(str, self.platforms))
        return known | ({"error": self.error} if self.error else {})


def read(client: Client, user_ids: Iterable[str], keys: Keys = DEFAULT) -> Iterator[Presence]:
    """Presence of users, in their order, a round trip for each thousand."""
    for chunk in _chunks(user_ids):
        yield from _presences(chunk, _ask(client, keys, chunk).execute(raise_on_error=False))


async def read_async(client: AsyncClient, user_ids: Iterable[str], keys: Keys = DEFAULT) -> AsyncIterator[Presence]:
    """As `read`."""
    for chunk in _chunks(user_ids):
        for user in _presences(chunk, await _ask(client, keys, chunk).execute(raise_on_error=False)):
            yield user


def read_all(client: Client, keys: Keys = DEFAULT) -> Iterator[Presence]:
    """Presence of every user there is, by SCAN, in no order; two round trips for each thousand, in constant memory.

    As SCAN promises: who is there from beginning to end comes at least once. Twice is possible while the server
    resizes its table or a Cluster moves slots; who comes or goes meanwhile may be missing.
    """
    for chunk in _chunks(client.scan_iter(**_users(keys))):
        yield from filter(_is_there, read(client, _user_ids(keys, chunk), keys))


async def read_all_async(client: AsyncClient, keys: Keys = DEFAULT) -> AsyncIterator[Presence]:
    """As `read_all`."""
    async for chunk in _chunks_async(client.scan_iter(**_users(keys))):
        async for user in read_async(client, _user_ids(keys, chunk), keys):
            if _is_there(user):
                yield user


def users_online(client: Client, keys: Keys = DEFAULT) -> int:
    """How many users are online, in one round trip; exact on a single Redis, docs/redis-keys.md has the rest."""
    count: Any = client.hget(keys.stats, "users_online")
    return max(0, int(count or 0))


async def users_online_async(client: AsyncClient, keys: Keys = DEFAULT) -> int:
    """As `users_online`."""
    count: Any = await client.hget(keys.stats, "users_online")
    return max(0, int(count or 0))


# What both flavours share: commands out, replies in.


def _chunks(items: Iterable[Any]) -> Iterator[list[Any]]:
    if isinstance(items, str):
        raise TypeError("users come in a list; this is one string, and each letter of it would be a user")
    remaining = iter(items)
    while chunk := list(islice(remaining, CHUNK)):
        yield chunk


async def _chunks_async(items: AsyncIterator[Any]) -> AsyncIterator[list[Any]]:
    chunk: list[Any] = []
    async for item in items:
        chunk.append(item)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _ask(client: Any, keys: Keys, user_ids: Sequence[str]) -> Any:
    pipeline = client.pipeline(transaction=False)
    for user_id in user_ids:
        # A lone surrogate is in nobody's id, and so finds nobody.
        key = keys.user(user_id).encode(errors="surrogatepass")
        pipeline.execute_command("HMGET", key, *FIELDS, **_AS_BYTES)
    return pipeline


def _users(keys: Keys) -> dict[str, Any]:
    return {"match": keys.user("*"), "count": CHUNK} | _AS_BYTES


def _user_ids(keys: Keys, found: Iterable[bytes]) -> list[str]:
    """Those of keys that SCAN found; a key that is no UTF-8 is none of ours."""
    ids = {}
    for key in found:
        with suppress(UnicodeDecodeError):
            ids[keys.user_id(key.decode())] = True
    return list(ids)


def _is_there(user: Presence) -> bool:
    """False for one that went away between SCAN and the reading."""
    return user.status != "unknown" or bool(user.error)


def _presences(user_ids: Sequence[str], replies: Iterable[Any]) -> Iterator[Presence]:
    for user_id, reply in zip(user_ids, replies, strict=True):
        if not isinstance(reply, Exception):
            yield _presence(user_id, reply)
        elif isinstance(reply, ResponseError) and str(reply).startswith("WRONGTYPE"):
            yield Presence(user_id, "unknown", error="the key is no hash")
        else:
            raise reply


def _presence(user_id: str, values: Sequence[bytes | None]) -> Presence:
    found: dict[str, Any] = {
        name: value.decode(errors="replace") for name, value in zip(FIELDS, values, strict=True) if value is not None
    }
    if found.get("status") not in ("online", "offline"):
        wrong = f"its status is {found.get('status', '')[:40]!r}" if found else ""
        return Presence(user_id, "unknown", error=wrong)
    wrong = ""
    for name in _NUMBERS:
        try:
            found[name] = int(found.get(name, "absent"))
        except ValueError:
            found[name] = 0
            wrong = f"its {name} is no number"
    platforms = found.get("platforms", "")  # hashes of release 0.1 have none
    try:
        found["platforms"] = tuple(map(int, platforms.split(","))) if platforms else ()
    except ValueError:
        found["platforms"] = ()
        wrong = "its platforms are no numbers"
    return Presence(user_id, **found, error=wrong)
