"""The baseline: what aiohttp and uvloop can do at all. Answers as to an accepted callback, and does nothing else."""

import asyncio
import sys

import uvloop
from aiohttp import web

ANSWER = b'{"actionCode":0,"errCode":0,"errMsg":"","errDlt":"","nextCode":0}'


async def answer(request: web.Request) -> web.Response:
    return web.Response(body=ANSWER, content_type="application/json", charset="utf-8")


async def main(port: int) -> None:
    app = web.Application()
    app.router.add_post("/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


uvloop.run(main(int(sys.argv[1])))
