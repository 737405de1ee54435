"""Reading presence: of some users, of all users, and how many are online.

Many users take few round trips. All functions raise redis-py's RedisError if the server cannot answer. If one user's
key is broken (it has another type, say), that user's `error` says so, and the others are read all the same.
"""

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Literal

from redis.exceptions import ResponseError

from openim_presence.client import AS_BYTES, AsyncClient, Client
from openim_presence.keys import DEFAULT_PREFIX, Keys

#: Users in one round trip (on a Cluster: one to each node).
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
    "platforms",
)
_NUMBERS = ("changed_at", "updated_at", "sessions")


@dataclass(frozen=True, slots=True)
class Presence:
    """What is known of one user. If nothing is known, status is "unknown" and nothing else is set.

    seq: decimal text, since it may exceed what JavaScript's numbers hold. changed_at, updated_at: Unix milliseconds.
    platforms: ids of those with an online session, ascending (1 iOS, 2 Android, 5 web, ...); empty if none is known.
    error: what is wrong with the key, or ""; status is then "unknown" unless it could be read.
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
        """The fields as Redis has them, for programs; for an unknown user only user_id and status.

        `error` is included only if there is one.
        """
        shown = {"user_id": self.user_id, "status": self.status}
        if self.status != "unknown":
            shown = asdict(self) | {"platforms": ",".join(map(str, self.platforms))}
            del shown["error"]
        return shown | ({"error": self.error} if self.error else {})


def read(client: Client, user_ids: Iterable[str], prefix: str = DEFAULT_PREFIX) -> Iterator[Presence]:
    """Presence of users, in the order given, with one round trip for each thousand."""
    for chunk in _chunks(user_ids):
        yield from _presences(chunk, _ask(client, prefix, chunk).execute(raise_on_error=False))


async def read_async(
    client: AsyncClient, user_ids: Iterable[str], prefix: str = DEFAULT_PREFIX
) -> AsyncIterator[Presence]:
    """As `read`."""
    for chunk in _chunks(user_ids):
        for user in _presences(chunk, await _ask(client, prefix, chunk).execute(raise_on_error=False)):
            yield user


def read_all(client: Client, prefix: str = DEFAULT_PREFIX) -> Iterator[Presence]:
    """Presence of every user, by SCAN, in no order; with two round trips for each thousand, in constant memory.

    As SCAN promises, a user who exists from beginning to end comes at least once. A user may come twice while the
    server resizes its table or a Cluster moves slots; one who is added or removed meanwhile may be missing.
    """
    for chunk in _chunks(client.scan_iter(**_users(prefix))):
        yield from filter(_is_there, read(client, _user_ids(prefix, chunk), prefix))


async def read_all_async(client: AsyncClient, prefix: str = DEFAULT_PREFIX) -> AsyncIterator[Presence]:
    """As `read_all`."""
    async for chunk in _chunks_async(client.scan_iter(**_users(prefix))):
        async for user in read_async(client, _user_ids(prefix, chunk), prefix):
            if _is_there(user):
                yield user


def users_online(client: Client, prefix: str = DEFAULT_PREFIX) -> int:
    """How many users are online, in one round trip. Exact on a single Redis; for a Cluster see docs/redis-keys.md."""
    count: Any = client.hget(Keys(prefix).stats, "users_online")
    return max(0, int(count or 0))


async def users_online_async(client: AsyncClient, prefix: str = DEFAULT_PREFIX) -> int:
    """As `users_online`."""
    count: Any = await client.hget(Keys(prefix).stats, "users_online")
    return max(0, int(count or 0))


# Both flavours share what makes the commands and reads the replies.


def _chunks(items: Iterable[Any]) -> Iterator[list[Any]]:
    if isinstance(items, str | bytes):
        raise TypeError("user_ids must be a list: in a string, each letter would be a user")
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


def _ask(client: Any, prefix: str, user_ids: Sequence[Any]) -> Any:
    if any(isinstance(user_id, bytes) for user_id in user_ids):
        raise TypeError("user_ids must be text: decode bytes first, they would find no user")
    keys, pipeline = Keys(prefix), client.pipeline(transaction=False)
    for user_id in user_ids:
        # A lone surrogate is in no user's id, and so finds no user.
        key = keys.user(user_id).encode(errors="surrogatepass")
        pipeline.execute_command("HMGET", key, *FIELDS, **AS_BYTES)
    return pipeline


def _users(prefix: str) -> dict[str, Any]:
    return {"match": Keys(prefix).user("*"), "count": CHUNK} | AS_BYTES


def _user_ids(prefix: str, found: Iterable[bytes]) -> list[str]:
    """The ids in keys that SCAN found; a key that is not UTF-8 is not ours."""
    keys, ids = Keys(prefix), {}
    for key in found:
        with suppress(UnicodeDecodeError):
            ids[keys.user_id(key.decode())] = True
    return list(ids)


def _is_there(user: Presence) -> bool:
    """False if the user went away between SCAN and the reading."""
    return user.status != "unknown" or bool(user.error)


def _presences(user_ids: Sequence[str], replies: Iterable[Any]) -> Iterator[Presence]:
    for user_id, reply in zip(user_ids, replies, strict=True):
        if not isinstance(reply, Exception):
            yield _presence(user_id, reply)
        elif isinstance(reply, ResponseError) and str(reply).startswith("WRONGTYPE"):
            yield Presence(user_id, "unknown", error="the key is not a hash")
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
            wrong = f"its {name} is not a number"
    platforms = found.get("platforms", "")  # absent if an older release wrote the hash
    found["platforms"] = ()
    if platforms:
        try:
            found["platforms"] = tuple(map(int, platforms.split(",")))
        except ValueError:
            wrong = "its platforms are not numbers"
    return Presence(user_id, **found, error=wrong)
