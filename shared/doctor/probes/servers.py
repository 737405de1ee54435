"""Asks one Redis what the doctor wants to know. Writes nothing there."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import takewhile
from typing import Any

from redis import Redis
from redis.exceptions import AuthenticationError, InvalidResponse, NoPermissionError, ResponseError

from shared.doctor.servers import ServerFacts
from shared.redis.backend import Backend
from shared.redis.client import connect
from shared.redis.clock import ServerClock
from shared.settings import Settings, without_password

ANSWER_SECONDS = 2.0
_CONFIG = ("protected-mode", "bind", "appendonly", "appendfsync")

#: The commands that we and RQ call, with arguments that change nothing even if the command runs: {rq}, {ours} and
#: {user} are keys that nobody can have, and a command that would make a key has a value that is refused.
COMMANDS = {
    "queue": (
        *("WATCH {rq}", "TYPE {rq}", "EXISTS {rq}", "DEL {rq}", "EXPIRE {rq} 1", "PERSIST {rq}", "PEXPIRE {ours} 1"),
        *("GET {ours}", "SET {ours} 1 XX", "HGET {rq} f", "HMGET {rq} f", "HGETALL {rq}", "HSET {rq} f v g"),
        *("HDEL {rq} f", "HINCRBY {rq} f x", "HINCRBYFLOAT {rq} f x", "SADD {rq} m", "SREM {rq} m", "SMEMBERS {rq}"),
        *("RPUSH {rq} v", "LREM {rq} 0 v", "LLEN {rq}", "LINDEX {rq} 0", "LRANGE {rq} 0 0", "BLMOVE {rq} {rq} X Y 0"),
        *("ZADD {rq} x m", "ZREM {rq} m", "ZCARD {rq}", "ZRANGE {rq} 0 0", "ZRANGEBYSCORE {rq} 0 0"),
        *("XADD {rq} x f v", "XREVRANGE {rq} + - COUNT 1"),
        *("HSET {ours} f v g", "HGETALL {ours}", "HDEL {ours} f", "INFO server"),
    ),
    "presence": (
        *("FCALL none 1 {user}", "FUNCTION LOAD x", "TYPE {user}", "DEL {user}", "EXPIRE {user} 1", "PERSIST {user}"),
        *("HGET {user} f", "HMGET {user} f", "HLEN {user}", "HGETALL {user}", "HSET {user} f v g", "HDEL {user} f"),
        *("HINCRBY {ours} f x", "HGETALL {ours}", "XADD {ours} x f v", "XREVRANGE {ours} + - COUNT 1"),
        *("ZADD {ours} x m", "ZREM {ours} m", "ZSCORE {ours} m", "ZRANGE {ours} 0 0", "SCAN 0 COUNT 1", "INFO server"),
    ),
}
#: These make a key whatever their arguments are, so they are only queued, in a transaction that is discarded.
_MAKES_A_KEY = ("SADD", "RPUSH")


def ask(url: str, roles: tuple[str, ...], settings: Settings) -> ServerFacts:
    """roles: "queue", "presence", or both if they are one server. Raises nothing."""
    role, where = " and ".join(roles), without_password(url)
    client = connect(url, timeout=ANSWER_SECONDS)
    try:
        infos: list[dict[str, Any]] = []
        skew_ms, breaks_protocol = 0, False
        with suppress(NoPermissionError):  # the rights below report it
            infos = client.at_each_primary(lambda primary: primary.info())
            skew_ms = client.at_each_primary(_skew_ms)[0]
        commands = [command for each in roles for command in COMMANDS[each]]
        denied: dict[str, str] = {}
        try:
            for refused in client.at_each_primary(lambda primary: _denied(primary, commands, settings.key_prefix)):
                denied |= refused
        except InvalidResponse:
            breaks_protocol = True
        return ServerFacts(
            role,
            where,
            infos=tuple(infos),
            breaks_protocol=breaks_protocol,
            is_cluster=client.is_cluster,
            has_replicas=client.has_replicas,
            skew_ms=skew_ms,
            denied=denied,
            is_open="@" not in url and "password=" not in url,
            config=_config(client),
        )
    except Exception as error:  # whatever it answered must be reported
        refused_us = isinstance(error, AuthenticationError) or "NOAUTH" in str(error)
        return ServerFacts(role, where, error=str(error) or type(error).__name__, is_refusal=refused_us)
    finally:
        client.close()


def _skew_ms(client: Redis) -> int:
    clock = ServerClock(client)
    clock.ask()
    return clock.skew_ms


def _config(client: Backend) -> Mapping[str, str] | None:
    """The configuration of the first server; one name at a time, since Redis 6.2 takes no more."""
    try:
        found = client.at_each_primary(lambda primary: [primary.config_get(name) for name in _CONFIG])[0]
    except ResponseError:
        return None
    return {str(name): str(value) for each in found for name, value in each.items()}


def _denied(client: Redis, commands: Iterable[str], prefix: str) -> dict[str, str]:
    """Which of the commands our user may not call, and the server's words.

    Redis looks at rights before it looks at arguments, and before it queues a command of a transaction; so this needs
    no right of its own, as ACL DRYRUN does, and works with every release. Raises RedisError.
    """
    keys = {"rq": f"rq:{prefix}-\0doctor", "ours": f"{prefix}-\0doctor", "user": f"{prefix}:\0doctor"}
    denied = {}
    connection = client.connection_pool.get_connection()
    try:

        def refusal(*words: str) -> str | None:
            connection.send_command(*words)  # type: ignore[no-untyped-call]
            try:
                connection.read_response()
            except NoPermissionError as error:
                return str(error)
            except ResponseError as error:
                return None if words != ("MULTI",) else str(error)
            return None

        without = refusal("MULTI")
        for command in commands:
            words = command.split()
            name = " ".join(takewhile(str.isupper, words))
            if without and name in _MAKES_A_KEY:
                denied["MULTI"] = without
            elif why := refusal(*(word.format(**keys) for word in words)):
                denied[name] = why
    finally:
        connection.disconnect()  # type: ignore[no-untyped-call]  # this discards the transaction
        client.connection_pool.release(connection)
    return denied
