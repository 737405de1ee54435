"""A load generator: raw HTTP over kept-alive connections, one request at a time on each, as OpenIM's senders do."""

import asyncio
import time
from dataclasses import dataclass, field

import uvloop

from shared.cli.gateways import Callback

_REQUEST = (
    b"POST /callbackExample/callbackAfterUser%sCommand HTTP/1.1\r\n"
    b"Host: 127.0.0.1\r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: %d\r\n"
    b"Content-Type: application/json; charset=utf-8\r\noperationID: %d-user%d\r\nAccept-Encoding: gzip\r\n\r\n%s"
)
_BODY = (
    b'{"userID":"user%d","callbackCommand":"callbackAfterUser%sCommand","seq":%d,"connID":"",'
    b'"platformID":2,"platform":"Android","operationID":"%d-user%d"}'
)


_BATCHED = _REQUEST.replace(b"%d-user%d", b"%s")
_BATCHED_BODY = (
    b'{"userID":"%s","callbackCommand":"callbackAfterUser%sCommand","seq":%d,"connID":"",'
    b'"platformID":%d,"platform":"Android","operationID":"%s"}'
)


def request(number: int, seq: int, step: bytes) -> bytes:
    """The callback of user `number`, as OpenIM 3.8.2 sends it. step: Online, Offline or KickOff."""
    body = _BODY % (number, step, seq, seq, number)
    return _REQUEST % (step, len(body), seq, number, body)


def callback(each: Callback, seq: int) -> bytes:
    """The request that a gateway of 3.8.2 or later makes of one callback of a batch."""
    operation_id = each.operation_id.encode()
    body = _BATCHED_BODY % (each.user_id.encode(), each.step.encode(), seq, each.platform_id, operation_id)
    return _BATCHED % (each.step.encode(), len(body), operation_id, body)


@dataclass
class Result:
    """seconds: of each answer, where they were asked for."""

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
    """Sends the next request when the last one's answer is there."""

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
        self._first = self._number = first
        self._last = first + most if most else None
        self._step = step.encode()
        self._started = time.perf_counter()
        self._until = self._started + seconds

    def wait(self) -> float:
        if not self._rate:
            return 0.0
        return self._started + (self._number - self._first) / self._rate - time.perf_counter()

    def take(self) -> bytes | None:
        if time.perf_counter() >= self._until or self._number == self._last:
            return None
        self._number += 1
        return request(self._number, int(time.time() * 1000), self._step)

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
    """Sends until the seconds or the most requests are over; users are numbered from first + 1.

    rate: requests/s over all connections, 0 for as many as there is an answer to.
    """

    async def main() -> Result:
        run = _Run(connections, seconds, rate, first, most, step)
        loop = asyncio.get_running_loop()
        for _ in range(connections):
            await loop.create_connection(lambda: _Connection(run), "127.0.0.1", port)
        await run.done
        return run.result

    return uvloop.run(main())
