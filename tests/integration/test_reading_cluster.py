"""Reading presence that lives on a Redis Cluster: the read module, the feed, the commands and a consumer group."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import recipes
import redis.asyncio
from redis import RedisCluster
from support import Process, wait_until
from support import presence as run_presence
from topology import SECRET, ClusterServers

import openim_presence as presence
from openim_presence import Feed
from shared.redis.client import connect

pytestmark = pytest.mark.xdist_group("reading cluster")  # they share what takes long to start
USERS = [f"u{number}" for number in range(2500)]
HASH = {"status": "online", "seq": "1", "changed_at": "7", "updated_at": "8", "sessions": "2"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterServers]:
    cluster = ClusterServers(tmp_path_factory.mktemp("cluster"))
    pipeline = cluster.client.pipeline(transaction=False)
    for user in USERS:
        pipeline.hset(f"presence:{user}", mapping=HASH)
    pipeline.set("presence:text", "x")
    pipeline.hset("presence-stats", "users_online", "2500")
    pipeline.execute()
    yield cluster
    cluster.kill()


@pytest.fixture(params=["ours", "bytes", "text"])
def client(request: pytest.FixtureRequest, cluster: ClusterServers) -> Iterator[Any]:
    """The project's own client, and those that other programs have."""
    port = cluster.primaries[0].port
    ours = request.param == "ours"
    made = (
        connect(cluster.url)
        if ours
        else RedisCluster(host="127.0.0.1", port=port, password=SECRET, decode_responses=request.param == "text")
    )
    yield made
    made.close()


def test_users_of_all_nodes_are_read(client: Any) -> None:
    found = list(presence.read(client, [*USERS, "nobody", "text"]))
    assert [user.user_id for user in found] == [*USERS, "nobody", "text"]
    assert [user.status for user in found] == ["online"] * len(USERS) + ["unknown"] * 2
    assert found[-1].error == "the key is not a hash"
    assert sorted(user.user_id for user in presence.read_all(client)) == sorted([*USERS, "text"])
    assert presence.users_online(client) == 2500


@pytest.mark.parametrize("decode", [False, True])
def test_users_of_all_nodes_are_read_with_asyncio(cluster: ClusterServers, decode: bool) -> None:
    async def main() -> None:
        port = cluster.primaries[0].port
        async with redis.asyncio.RedisCluster(
            host="127.0.0.1", port=port, password=SECRET, decode_responses=decode
        ) as client:
            found = [user async for user in presence.read_async(client, [*USERS, "nobody", "text"])]
            assert [user.status for user in found] == ["online"] * len(USERS) + ["unknown"] * 2
            everybody = [user.user_id async for user in presence.read_all_async(client)]
            assert sorted(everybody) == sorted([*USERS, "text"])
            assert await presence.users_online_async(client) == 2500

    asyncio.run(main())


def test_changes_are_followed(client: Any) -> None:
    client.xtrim("presence-changes", maxlen=0, approximate=False)
    feed = Feed(client)
    assert feed.poll(0.01) == []
    client.xadd("presence-changes", {"user_id": "alice", "status": "online"})
    assert [change.user_id for change in feed.poll(0.01)] == ["alice"]
    assert feed.poll(0.01) == []


def test_everybody_is_listed(cluster: ClusterServers) -> None:
    elsewhere = "redis://127.0.0.1/0"  # nobody looks there for users
    settings = {"PRESENCE_REDIS_URL": cluster.url, "PRESENCE_QUEUE_URL": elsewhere}
    done = run_presence("get", "--all", "--status", "online", "--json", **settings)
    assert sorted(json.loads(line)["user_id"] for line in done.stdout.splitlines()) == sorted(USERS)


def test_a_consumer_group_needs_only_another_client(
    cluster: ClusterServers, tmp_path: Path, keep: Callable[[Process], Process]
) -> None:
    port = cluster.primaries[0].port
    path = recipes.write(tmp_path, "consumer.py", port)
    text = (
        path.read_text().replace("Redis.from_url", "RedisCluster.from_url").replace("redis://", f"redis://:{SECRET}@")
    )
    path.write_text(text.replace("import Redis\n", "import RedisCluster\n"))
    consumer = recipes.Recipe(path)
    keep(consumer)
    cluster.client.xadd("presence-changes", {"user_id": "carol", "status": "online"})
    wait_until(lambda: "carol online" in consumer.text())
    wait_until(lambda: cluster.client.xpending("presence-changes", "mailer")["pending"] == 0)
