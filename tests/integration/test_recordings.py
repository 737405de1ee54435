"""What a real OpenIM called back, played to the whole path: receiver, queue, two workers, and a real server."""

import asyncio
import time
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path

import pytest
import recorded
from recorded import Call
from redis import Redis
from support import Process, Receiver, Server, Worker, on_one_server, wait_until

pytestmark = on_one_server

SENDERS = 2  # of each gateway


async def play(port: int, calls: Iterable[Call], later_ms: int) -> None:
    """Posts the calls as their gateways would, as fast as possible: two at a time from each, in the recorded order."""
    gateways = sorted(calls, key=gateway_of)  # which keeps the order within each

    async def sender(waiting: Iterable[Call]) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for call in waiting:
            writer.write(request(call, later_ms))
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length))
        writer.close()

    queues = [iter(list(of_one)) for _, of_one in groupby(gateways, key=gateway_of)]
    await asyncio.gather(*(sender(queue) for queue in queues for _ in range(SENDERS)))


def gateway_of(call: Call) -> str:
    """The process that sent it, as p_<pid>_<n> says."""
    return call.operation_id.split("_")[1]


def request(call: Call, later_ms: int) -> bytes:
    command = f"callbackAfterUser{call.kind.capitalize()}Command"
    body = (
        f'{{"userID":"{call.user_id}","callbackCommand":"{command}","seq":{call.seq + later_ms},"connID":"",'
        f'"platformID":{call.platform_id},"platform":"","operationID":"{call.operation_id}"}}'
    )
    return (
        f"POST /callbackExample/{command} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json; charset=utf-8\r\n"
        f"operationID: {call.operation_id}\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


def platforms_online(redis: Redis, users: Iterable[str]) -> recorded.Platforms:
    users = list(users)
    pipeline = redis.pipeline(transaction=False)
    for user in users:
        pipeline.hget(f"presence:{user}", "platforms")
    found = zip(users, pipeline.execute(), strict=True)
    return {user: [int(each) for each in (ids or b"").split(b",") if each] for user, ids in found}


def outcomes(redis: Redis) -> int:
    return sum(int(count or 0) for count in redis.hmget("presence-stats", "applied", "duplicate", "stale"))


@pytest.mark.parametrize("name", ["churn-600", "churn-400"])
def test_presence_agrees_with_the_record_of_a_real_openim(
    name: str, server: Server, receiver: Receiver, redis: Redis, tmp_path: Path, keep: Callable[[Process], Process]
) -> None:
    for number in range(2):
        keep(Worker(tmp_path, server.url, f"worker{number}"))
    recording = recorded.load(name)
    later_ms = time.time_ns() // 1_000_000 - recording.calls[-1].seq
    users, sent, comparison = {call.user_id for call in recording.calls}, 0, recorded.Comparison()
    for calls, record in recording.pieces():
        asyncio.run(play(receiver.port, calls, later_ms))
        sent += len(calls)
        wait_until(lambda sent=sent: outcomes(redis) == sent, what="all to be applied")
        comparison.look(platforms_online(redis, users), record)
    assert comparison.false_offlines == 0
    assert comparison.ghosts * 100 <= recording.acts
