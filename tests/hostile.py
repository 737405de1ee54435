"""Bad peers of every kind at one port, each reconnecting when it is cut off: `python tests/hostile.py PORT COUNT`.

It is a program of its own, so that its work does not disturb the measurements of a test.
"""

import asyncio
import random
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress

BODY = b'{"userID":"h","callbackCommand":"callbackUserOfflineCommand","seq":1,"operationID":"op"}'
HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY

Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def drip(writer: asyncio.StreamWriter, data: bytes) -> None:
    for at in range(len(data)):
        writer.write(data[at : at + 1])
        await writer.drain()
        await asyncio.sleep(0.2)


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def slow_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await drip(writer, HEAD + b"X: " + b"y" * 1000)


async def slow_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"Content-Length: 16000\r\n\r\n")
    await drip(writer, b"{" * 16000)


async def slow_chunks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    await drip(writer, b"1\r\n{\r\n" * 4000)


async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends as much as the receiver takes, and reads nothing."""
    writer.transport.pause_reading()
    while True:
        writer.write(WHOLE * 100)
        await writer.drain()
        await asyncio.sleep(0.05)


async def large_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"Content-Length: 100000000\r\n\r\n")
    for _ in range(100):
        writer.write(b" " * 65536)
        await writer.drain()
        await asyncio.sleep(0.05)


async def large_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    for number in range(1000):
        writer.write(b"X-%d: " % number + b"y" * 2000 + b"\r\n" if number else HEAD)
        await writer.drain()
        await asyncio.sleep(0.01)


async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(random.randbytes(5000) + b"\r\n\r\n")
    await reader.read(1000)
    await asyncio.sleep(0.2)


async def gone(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Goes away in the middle of a request."""
    writer.write(WHOLE[:-20])
    await writer.drain()
    await asyncio.sleep(0.1)
    writer.transport.abort()


async def pipeline(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 50)
    await reader.read(100)
    await asyncio.sleep(1)


KINDS: list[Peer] = [
    *(silent, slow_head, slow_body, slow_chunks, deaf, large_body, large_head, garbage, gone, pipeline),
]


async def torment(port: int, peer: Peer) -> None:
    while True:
        with suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                await peer(reader, writer)
            finally:
                writer.transport.abort()
        await asyncio.sleep(0.2)


async def main(port: int, count: int) -> None:
    peers = [torment(port, KINDS[number % len(KINDS)]) for number in range(count)]
    print("here", flush=True)
    await asyncio.gather(*peers)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
