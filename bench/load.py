"""A load generator: raw HTTP over kept-alive connections, one request at a time on each, as OpenIM's senders do."""

import asyncio
import itertools
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import uvloop

from shared.cli import churn
from shared.cli.gateways import Callback

_REQUEST = (
    b"POST /callbackExample/callbackAfterUser%sCommand HTTP/1.1\r\n"
    b"Host: 127.0.0.1\r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: %d\r\n"
    b"Content-Type: application/json; charset=utf-8\r\noperationID: %s\r\nAccept-Encoding: gzip\r\n\r\n%s"
)
_BODY = (
    b'{"userID":"%s","callbackCommand":"callbackAfterUser%sCommand","seq":%d,"connID":"",'
    b'"platformID":%d,"platform":"Android","operationID":"%s"}'
)
BATCH_CALLBACKS = 64


def request(callback: Callback, seq: int) -> bytes:
    """The HTTP request of a gateway of 3.8.2 or later for one callback."""
    step, user_id, platform_id, operation_id = callback
    encoded = step.encode(), operation_id.encode()
    body = _BODY % (user_id.encode(), encoded[0], seq, platform_id, encoded[1])
    return _REQUEST % (encoded[0], len(body), encoded[1], body)


def callbacks(step: str, first: int, most: int | None) -> Iterator[Callback]:
    """One callback for each of this many users; or, for the step Session, all callbacks of users who come and go."""
    numbers = itertools.islice(itertools.count(first + 1), most)
    if step == "Session":
        for batch in churn.batches((f"user{number}" for number in numbers), random.Random()):
            yield from batch
    else:
        pid = random.randrange(1000, 100_000)
        for number in numbers:
            yield Callback(step, f"user{number}", 2, f"p_{pid}_{number // BATCH_CALLBACKS}")  # type: ignore[arg-type]


@dataclass
class Result:
    """seconds: how long each answer took, if that was asked for."""

    answers: int = 0
    accepted: int = 0
    elapsed: float = 0.0
    seconds: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return self.answers / self.elapsed

    def percentile_ms(self, percent: float) -> float:
        ordered = sorted(self.seconds)
        return ordered[int((len(ordered) - 1) * percent / 100)] * 1000


class _Connection(asyncio.Protocol):
    """Sends the next request when the last one is answered."""

    def __init__(self, run: "_Run") -> None:
        self.run = run
        self.sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.next()

    def next(self) -> None:
        run = self.run
        if (wait := run.wait()) > 0:
            asyncio.get_running_loop().call_later(wait, self.send)
        else:
            self.send()

    def send(self) -> None:
        data = self.run.take()
        if data is None:
            self.transport.close()
            self.run.ended()
            return
        self.sent_at = time.perf_counter()
        self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        # The answers are small and come one by one: one read each.
        run = self.run
        run.result.answers += 1
        run.result.accepted += data.startswith(b"HTTP/1.1 200") and b'"actionCode":0' in data
        run.result.seconds.append(time.perf_counter() - self.sent_at)
        self.next()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.transport.is_closing():
            self.run.ended()


class _Run:
    def __init__(self, connections: int, seconds: float, rate: float, first: int, most: int | None, step: str) -> None:
        self.result = Result()
        self.done = asyncio.get_running_loop().create_future()
        self._open = connections
        self._rate = rate
        self._taken = 0
        self._callbacks = callbacks(step, first, most)
        self._started = time.perf_counter()
        self._until = self._started + seconds

    def wait(self) -> float:
        if not self._rate:
            return 0.0
        return self._started + self._taken / self._rate - time.perf_counter()

    def take(self) -> bytes | None:
        if time.perf_counter() >= self._until or (each := next(self._callbacks, None)) is None:
            return None
        self._taken += 1
        return request(each, time.time_ns() // 1_000_000)

    def ended(self) -> None:
        self._open -= 1
        if not self._open and not self.done.done():
            self.result.elapsed = time.perf_counter() - self._started
            self.done.set_result(None)


def drive(
    port: int,
    connections: int,
    seconds: float,
    rate: float = 0,
    first: int = 0,
    most: int | None = None,
    step: str = "Offline",
) -> Result:
    """Sends until the seconds are over, or all callbacks of `most` users are sent; users are numbered from first + 1.

    step: Online, Offline, KickOff, or Session for users who come and go. rate: requests/s over all connections; 0: each
    connection sends as soon as it has an answer.
    """

    async def main() -> Result:
        run = _Run(connections, seconds, rate, first, most, step)
        loop = asyncio.get_running_loop()
        for _ in range(connections):
            await loop.create_connection(lambda: _Connection(run), "127.0.0.1", port)
        await run.done
        return run.result

    return uvloop.run(main())
