"""What INFO tells about a server, and what follows from it."""

import pytest

from shared.redis.checks import durability_risk, incompatibility, read_info


@pytest.mark.parametrize(
    ("info", "says"),
    [
        ({"redis_version": "6.0.16", "redis_mode": "standalone"}, "Redis 6.0.16; 6.2 or later is needed"),
        ({"redis_version": "7.0.15", "cluster_enabled": "1"}, "write redis+cluster://"),
        ({"redis_version": "7.2.4", "server_mode": "sentinel"}, "write redis+sentinel://"),
        ({"redis_version": "7.0.15", "redis_mode": "sentinel"}, "write redis+sentinel://"),
    ],
)
def test_a_server_that_cannot_serve_is_told_apart(info: dict[str, str], says: str) -> None:
    assert says in incompatibility(info)


@pytest.mark.parametrize("version", ["6.2.0", "7.0.15", "8.0.1", "10.0.0", "unstable", ""])
def test_a_server_that_is_new_enough_or_does_not_tell_will_do(version: str) -> None:
    assert incompatibility({"redis_version": version}) == ""


def test_a_server_of_a_cluster_is_right_for_a_clusters_url() -> None:
    assert incompatibility({"redis_version": "7.0.15", "cluster_enabled": 1}, is_cluster=True) == ""


def test_a_server_that_may_evict_is_warned_of() -> None:
    assert "set maxmemory-policy noeviction, not allkeys-lru" in durability_risk({"maxmemory_policy": "allkeys-lru"})
    assert durability_risk({"maxmemory_policy": "noeviction"}) == ""
    assert durability_risk({}) == ""  # some managed servers do not tell


def test_info_is_read_as_it_comes() -> None:
    assert read_info("# Server\r\nredis_version:7.0.15\r\nexecutable:/a:b\r\n\r\n") == {
        "redis_version": "7.0.15",
        "executable": "/a:b",
    }
