"""How often the change feed shows a flip that did not happen: `python bench/flips.py`.

1,000 users are kicked by a new connection of theirs, and then 1,000 lose the older of two connections; all stay online.
Sixteen gateways with two senders each call back under light load, to one receiver process and to two.
"""

import asyncio
import random
import time
from pathlib import Path

from load import request
from rig import Receiver, Server, Worker, applied, bench, wait_until

from shared.cli.gateways import Callback, Connection, Gateways

USERS = 1000
GATEWAYS = 16
SENDERS = 2
BATCHES_A_SECOND = 50
#: The mean time that a sender takes between two callbacks of one user. In tests/recordings a user's batch takes 2 ms,
#: and one in ten takes 11 ms or more, since the senders send callbacks of other users in between.
BETWEEN_SECONDS = 0.004


class Senders:
    """The senders of each gateway, each with a connection that it keeps, and one request on its way."""

    def __init__(self, port: int) -> None:
        self._queues: list[asyncio.Queue[bytes]] = [asyncio.Queue() for _ in range(GATEWAYS)]
        self._tasks = [asyncio.create_task(self._send(port, queue)) for queue in self._queues for _ in range(SENDERS)]
        self.sent = 0

    async def _send(self, port: int, queue: "asyncio.Queue[bytes]") -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while True:
            callback = await queue.get()
            await asyncio.sleep(random.expovariate(1 / BETWEEN_SECONDS))
            writer.write(callback)
            answer = await reader.readuntil(b"}")
            assert b'"actionCode":0' in answer, answer
            queue.task_done()

    def take(self, gateway: int, batch: list[Callback]) -> None:
        seq = time.time_ns() // 1_000_000
        random.shuffle(batch)
        for each in batch:
            self._queues[gateway].put_nowait(request(each, seq))
        self.sent += len(batch)

    async def done(self) -> None:
        for queue in self._queues:
            await queue.join()
        for task in self._tasks:
            task.cancel()


async def play(port: int, server: Server, im: Gateways, change: str, phones: list[Connection]) -> int:
    """Something happens to one user after another. Returns for how many of them the feed had a change."""
    senders, before = Senders(port), applied(server)
    server.client.delete("presence-changes")
    for number, phone in enumerate(phones):
        if change == "kicked":
            phones[number] = im.open(phone.user_id, 1, "new", phone.gateway)
        elif change == "replaced":
            im.close(phone)
        elif change == "second":
            im.open(phone.user_id, 1, phone.token, phone.gateway)
        senders.take(phone.gateway, im.second_passes(phone.gateway))
        await asyncio.sleep(1 / BATCHES_A_SECOND)
    for gateway in range(GATEWAYS):  # what OpenIM repeats a second later
        senders.take(gateway, im.second_passes(gateway))
    await senders.done()
    wait_until(lambda: applied(server) == before + senders.sent, 60, "all to be applied")
    changes = [entry[b"user_id"] for _, entry in server.client.xrange("presence-changes")]
    return len(set(changes))


def measure(directory: Path, server: Server, processes: int) -> None:
    server.client.flushall()
    receiver = Receiver(directory / str(processes), server.url, processes=str(processes))
    workers = [Worker(directory, server.url, f"worker{number}") for number in range(2)]
    try:
        wait_until(lambda: server.client.scard("rq:workers") == len(workers))
        im = Gateways(*range(1000, 1000 + GATEWAYS))
        phones = [im.open(f"user{number}", 1, "old", number % GATEWAYS) for number in range(USERS)]
        came = asyncio.run(play(receiver.port, server, im, "came", phones))
        assert came == USERS
        kicked = asyncio.run(play(receiver.port, server, im, "kicked", phones))
        second = asyncio.run(play(receiver.port, server, im, "second", phones))
        replaced = asyncio.run(play(receiver.port, server, im, "replaced", phones))
        assert server.client.hget("presence-stats", "users_online") == b"%d" % USERS
        print(
            f"{processes} process{'es' if processes > 1 else ''}: false flips on the feed: {kicked} of {USERS} "
            f"users kicked, {replaced} of {USERS} replaced, {second} of {USERS} with a second connection",
            flush=True,
        )
    finally:
        for program in (receiver, *workers):
            program.kill()


def main() -> None:
    with bench() as (directory, programs):
        server = Server(directory / "redis")
        programs.append(server)
        for processes in (1, 2):
            measure(directory, server, processes)


if __name__ == "__main__":
    main()
