"""Checks by INFO whether a Redis server is one that must or should be used."""

import logging
from collections.abc import Mapping
from typing import Any

from redis.exceptions import ConnectionError

from shared.errors import SettingsError
from shared.redis.backend import Backend
from shared.settings import Settings

#: The first version with LMOVE, by which RQ takes a job so that a killed worker cannot lose it.
QUEUE_VERSION = (6, 2)


def queue_variable(settings: Settings) -> str:
    """The variable that says where the queue is."""
    return "PRESENCE_REDIS_URL" if settings.queue_url == settings.redis_url else "PRESENCE_QUEUE_URL"


def inspect(client: Backend, variable: str, log: logging.Logger) -> None:
    """Warns of what endangers the data, once for all servers of a Cluster.

    Raises RedisError; SettingsError if a server is too old or not what the variable's URL says.
    """
    infos = _infos(client, variable)
    for info in infos:
        if reason := incompatibility(info, is_cluster=client.is_cluster):
            raise SettingsError(f"{variable}: {reason}")
    if risks := [risk for info in infos if (risk := durability_risk(info))]:
        log.warning("%s: %s", variable, risks[0])


def _infos(client: Backend, variable: str) -> list[Mapping[str, Any]]:
    try:
        return client.at_each_primary(lambda server: server.info())
    except ConnectionError as error:
        if "Cluster mode is not enabled" in str(error):  # redis-py says so if CLUSTER SLOTS is refused for any reason
            raise SettingsError(f"{variable}: this is not a Redis Cluster, or it forbids CLUSTER SLOTS") from None
        raise


def incompatibility(info: Mapping[str, Any], *, is_cluster: bool = False) -> str:
    """Why the server cannot serve, or ""."""
    if info.get("redis_mode", info.get("server_mode")) == "sentinel":
        return "this is a Sentinel: write redis+sentinel://host:port/service/db"
    if int(info.get("cluster_enabled", 0)) and not is_cluster:
        return "this server is part of a Redis Cluster: write redis+cluster://host:port"
    version = str(info.get("redis_version", "")).split(".")[:2]
    if all(part.isdigit() for part in version) and tuple(map(int, version)) < QUEUE_VERSION:
        return f"the server is Redis {info['redis_version']}; 6.2 or later is needed for the queue, 7.0 for presence"
    return ""


def durability_risk(info: Mapping[str, Any]) -> str:
    """Why the server may lose what it was given, or "". Does not use CONFIG GET, which managed servers forbid."""
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if policy == "noeviction":
        return ""
    return f"the server may evict what it holds when its memory is full; set maxmemory-policy noeviction, not {policy}"


def read_info(text: str) -> dict[str, str]:
    """Parses INFO's reply as it comes over the wire."""
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
