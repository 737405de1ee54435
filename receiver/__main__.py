"""`python -m receiver`: one receiver, until SIGTERM or Ctrl-C."""

import asyncio
import logging
import signal
import ssl
import sys
from collections.abc import Coroutine

from receiver import processes
from receiver.admin import SingleProcess, make_admin
from receiver.child import Inherited, answer_parent, inherited
from receiver.forward.forwarder import Forwarder
from receiver.http import access, tls
from receiver.http.handler import Receiver
from receiver.http.listening import Listener, bind, listen
from receiver.http.server import Server
from receiver.http.visitors import AdminRunner
from receiver.journal.fsync import PeriodicSync, SyncBeforeAck
from receiver.journal.journal import Journal
from receiver.lately import Lately
from receiver.metrics import Counts
from receiver.relay.relay import Relay
from receiver.service_manager import say_ready
from receiver.stopping import Stop
from shared.errors import PresenceError
from shared.logs import setup as logs
from shared.logs import streams
from shared.settings import Settings, load

#: After the last answer: the time for copies of callbacks, and for pushing the journal's events to Redis.
COPY_SECONDS = 1.0
HAND_OVER_SECONDS = 5.0
#: How long the relay's thread may hold the interpreter while a request waits; Python's default is 5 ms.
SWITCH_SECONDS = 0.00005

_OPEN = (
    "anyone who reaches %s can send callbacks: set PRESENCE_ALLOWED_NETWORKS, PRESENCE_BASIC_AUTH or "
    "PRESENCE_CALLBACK_PATH, or make sure that only OpenIM reaches it"
)

log = logging.getLogger("receiver")


async def serve(settings: Settings, given: Inherited | None, context: ssl.SSLContext | None = None) -> None:
    """Receives until a signal, then stops in order (docs/operations.md). Raises SettingsError if it cannot listen.

    given: for one of several processes, which reports its health to its parent and has no admin port. context: for
    HTTPS.
    """
    # The parent's SIGTERM may come twice: a service manager sends one to every process.
    stop = Stop(hurrying=[signal.SIGINT]) if given else Stop()
    own = given.own if given else bind(settings.host, settings.port, "PORT")
    journal = Journal(settings.journal_dir, settings.journal_max_bytes)
    if trouble := journal.check():
        log.error("%s (%s): events are refused until it can", trouble, settings.journal_dir.absolute())
    relay = Relay(journal, settings)
    syncer = PeriodicSync(journal)
    always = settings.journal_fsync == "always"
    counts = Counts()
    durable = SyncBeforeAck(journal).wait if always else None
    forwarder = Forwarder(settings) if settings.forward_url else None
    lately = Lately()
    receiver = Receiver(settings, journal, counts, lately, relay.wake, durable, forwarder)

    server = Server(receiver.handle, receiver.unreadable, context)
    listener = Listener(server, own, given.siblings if given else ())
    pages = SingleProcess(settings, journal, relay, counts, lately, stop, forwarder)
    admin: AdminRunner | None = None
    tasks: list[asyncio.Task[None]] = []
    try:
        await listener.start(settings.host, settings.port, "PORT")
        if given:
            tasks.append(asyncio.create_task(answer_parent(given.control, pages, stop)))
        elif settings.admin_port:
            admin = AdminRunner(make_admin(pages, settings), access_log=None)
            await listen(admin, settings.admin_host, settings.admin_port, "ADMIN_PORT")
        relay.start()
        syncer.start()
        where = settings.host, settings.port, " (HTTPS)" if context else ""
        log.info("receiving on %s:%d%s, journal in %s", *where, settings.journal_dir.absolute())
        if not given:  # for several processes, their parent says it
            say_ready()
        if context and settings.tls_cert and settings.tls_key:
            tasks.append(asyncio.create_task(tls.renew(settings.tls_cert, settings.tls_key, server.serve_with)))
        await stop.told.wait()
        await stop.pause(settings.stop_delay_seconds)
    finally:
        await listener.stop()
        await server.stop(stop.hurried)
        if admin:
            await admin.cleanup()
        if forwarder:
            await forwarder.close(COPY_SECONDS)
        await _hand_over(relay, syncer, journal)
        for task in tasks:
            task.cancel()


async def _hand_over(relay: Relay, syncer: PeriodicSync, journal: Journal) -> None:
    if relay.is_alive():
        log.info("stopping: %d events still to push", journal.waiting_events)
        await asyncio.to_thread(relay.stop, HAND_OVER_SECONDS)
        syncer.stop()
        log.info("stopped: %d events wait on disk", journal.waiting_events)
    try:
        journal.close(keep_folder=not relay.signed_off)
    except OSError as error:
        log.error("the journal could not be synced: %s", error.strerror)


def main() -> int:
    streams.take_over()
    try:
        settings = load()
        logs.set_up(settings.log_level, settings.log_format)
        # aiohttp logs a stack trace for each peer that sends no HTTP or hangs up: every port scan would do that.
        logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
        sys.setswitchinterval(SWITCH_SECONDS)
        given = inherited()
        if access.is_open(settings) and not given:  # for several processes, their parent says it
            log.warning(_OPEN, settings.host)
        context = None
        if settings.tls_cert and settings.tls_key:
            context = tls.make_context(settings.tls_cert, settings.tls_key)
        if settings.processes > 1 and not given:
            _run(processes.supervise(settings))
        else:
            _run(serve(settings, given, context))
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
