"""Copies of our own callbacks: bounded, and counted when they are dropped."""

import asyncio
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from receiver.forward import forwarder as forward
from shared.settings import load


def test_copies_past_the_bound_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "MOST_COPIES", 5)

    async def run() -> Any:
        async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(60)

        stuck = await asyncio.start_server(hold, "127.0.0.1", 0)
        port = stuck.sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        forwarder = forward.Forwarder(load({"PRESENCE_FORWARD_URL": url, "PRESENCE_FORWARD_OURS": "1"}))
        for _ in range(20):
            forwarder.copy(make_mocked_request("POST", "/x"), b"{}")
        at_once = forwarder.dropped
        await forwarder.close(0.1)
        await asyncio.sleep(0)
        stuck.close()
        return at_once, forwarder.dropped, forwarder.forwarded

    at_once, in_the_end, forwarded = asyncio.run(run())
    assert at_once == 15
    assert in_the_end >= 16
    assert forwarded == 0
