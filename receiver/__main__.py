"""`python -m receiver`: one receiver, until SIGTERM or Ctrl-C."""

import asyncio
import logging
import signal
import sys
from collections.abc import Coroutine

from aiohttp import web

from receiver.app import Receiver, make_admin, make_server
from receiver.durability import BeforeAnswer, EverySecond
from receiver.journal import Journal
from receiver.relay import Relay
from shared import log as logs
from shared.errors import PresenceError, SettingsError
from shared.settings import Settings, load

#: After SIGTERM: seconds for open requests, and then for handing the journal to Redis. Docker waits 10.
ANSWER_SECONDS = 2.0
HAND_OVER_SECONDS = 5.0
#: The relay's thread holds the interpreter for so long at most while a request waits; 5 ms is Python's own.
SWITCH_SECONDS = 0.0005

log = logging.getLogger("receiver")


async def serve(settings: Settings) -> None:
    """Receives until a signal, then stops in order. Raises SettingsError where it cannot listen."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    journal = Journal(settings.journal_dir, settings.journal_max_bytes)
    if trouble := journal.check():
        log.error("%s (%s): events are refused until it can", trouble, settings.journal_dir.absolute())
    relay = Relay(journal, settings)
    syncer = EverySecond(journal)
    always = settings.journal_fsync == "always"
    receiver = Receiver(settings, journal, relay.wake, BeforeAnswer(journal).wait if always else None)

    runners: list[web.BaseRunner] = []
    try:
        callbacks = web.ServerRunner(make_server(receiver, settings), shutdown_timeout=ANSWER_SECONDS)
        await _listen(runners, callbacks, settings.host, settings.port, "PORT")
        if settings.admin_port:
            admin = web.AppRunner(make_admin(journal, lambda: relay.redis_is_up), access_log=None)
            await _listen(runners, admin, settings.admin_host, settings.admin_port, "ADMIN_PORT")
        relay.start()
        syncer.start()
        log.info("receiving on %s:%d, journal in %s", settings.host, settings.port, settings.journal_dir.absolute())
        await stop.wait()
    finally:
        for runner in runners:
            await runner.cleanup()
        if relay.is_alive():
            log.info("stopping: %d events still to hand over", journal.waiting_events)
            await asyncio.to_thread(relay.stop, HAND_OVER_SECONDS)
            syncer.stop()
            journal.close()
            log.info("stopped: %d events wait on disk", journal.waiting_events)


async def _listen(
    runners: list[web.BaseRunner],
    runner: web.BaseRunner,
    host: str,
    port: int,
    variable: str,
) -> None:
    await runner.setup()
    runners.append(runner)
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        raise SettingsError(f"PRESENCE_{variable}: cannot listen on {host}:{port}: {error.strerror}") from None


def main() -> int:
    try:
        settings = load()
        logs.set_up(settings.log_level, settings.log_format)
        # aiohttp logs a stack trace for each peer that sends no HTTP or hangs up: every port scan would do that.
        logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
        sys.setswitchinterval(SWITCH_SECONDS)
        _run(serve(settings))
    except PresenceError as error:
        print(f"receiver: {error}", file=sys.stderr)
        return 1
    return 0


def _run(program: Coroutine[None, None, None]) -> None:
    try:
        import uvloop
    except ImportError:
        asyncio.run(program)
    else:
        uvloop.run(program)


if __name__ == "__main__":
    sys.exit(main())
