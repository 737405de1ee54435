"""A worker's pages, on their own port: /healthz and /metrics. Off unless PRESENCE_WORKER_ADMIN_PORT is set.

They run in a thread beside the worker's loop, on the standard library's server: a worker needs no other HTTP.
"""

import json
import logging
import os
import socket
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

from shared.addresses import is_of_the_host
from shared.errors import SettingsError
from shared.logs.outage import Outage
from shared.logs.streams import lines_dropped
from shared.observe.metrics import CONTENT_TYPE, of_log, of_snapshot, page
from shared.observe.poller import Poller
from shared.settings import Settings
from worker.heartbeat import Heartbeat

#: A worker hangs if its loop has not run for this long: a job takes seconds, even while Redis is away.
HANGS_SECONDS = 60.0
#: How many may ask at a time: each has a thread and an open file, of which the worker needs some itself.
MOST_PEERS = 32

log = logging.getLogger("worker.admin")


class Pages:
    """The pages: each is a status, a content type and a body."""

    def __init__(self, settings: Settings, heartbeat: Heartbeat, queue: Outage, presence: Outage) -> None:
        self._poller = Poller(settings)
        self._heartbeat = heartbeat
        self._queue = queue
        self._presence = presence

    def healthz(self) -> tuple[int, str, bytes]:
        """Alive while the loop runs, whatever Redis does."""
        age_seconds = self._heartbeat.age_seconds
        alive = age_seconds < HANGS_SECONDS
        state = {
            "status": "alive" if alive else f"the worker's loop has not run for {age_seconds:.0f} s",
            "pid": os.getpid(),
            "queue": "down" if self._queue.is_on else "up",
            "presence": "down" if self._presence.is_on else "up",
        }
        return 200 if alive else 503, "application/json", json.dumps(state).encode() + b"\n"

    def metrics(self) -> tuple[int, str, bytes]:
        snapshot = self._poller.poll()
        metrics = of_snapshot(snapshot, queue_up=not self._queue.is_on, presence_up=not self._presence.is_on)
        return 200, CONTENT_TYPE, page([*metrics, of_log(lines_dropped())])


def serve(settings: Settings, pages: Pages) -> ThreadingHTTPServer:
    """Listens and answers in a thread. Raises SettingsError if it cannot listen."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 2.0  # seconds for a peer that connects and sends nothing

        def do_GET(self) -> None:
            found = {"/healthz": pages.healthz, "/metrics": pages.metrics}.get(self.path.partition("?")[0])
            status, content_type, body = found() if found else (404, "text/plain", b"/healthz or /metrics\n")
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Logs nothing: a line for every scrape would only be noise."""

    host, port = settings.admin_host, settings.worker_admin_port
    try:
        _Server.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        server = _Server((host, port), Handler)
    except OSError as error:
        trouble = f"cannot listen on {host}:{port}: {error.strerror}"
        if is_of_the_host(error):
            raise SettingsError(f"PRESENCE_ADMIN_HOST: {trouble}") from None
        raise SettingsError(
            f"PRESENCE_WORKER_ADMIN_PORT: {trouble}; each worker on a host needs its own port, or 0 for none"
        ) from None
    threading.Thread(target=server.serve_forever, name="admin", daemon=True).start()
    return server


class _Server(ThreadingHTTPServer):
    """Has a thread for each peer, and at most MOST_PEERS: the oldest makes room for a newcomer."""

    daemon_threads = True
    request_queue_size = 128  # as for 5 the kernel would keep a scrape waiting behind a few strangers

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._open: dict[socket.socket, None] = {}
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open[request] = None
        if len(self._open) > MOST_PEERS:
            oldest = next(iter(list(self._open)))
            self._open.pop(oldest, None)
            with suppress(OSError):  # it has just ended
                oldest.shutdown(socket.SHUT_RDWR)  # and so its thread ends
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.pop(request, None)
        super().shutdown_request(request)

    def server_bind(self) -> None:
        if self.server_address[0] == "::":  # IPv4 as well, whatever the machine's default
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        TCPServer.server_bind(self)  # HTTPServer's version first asks the DNS for our name

    def handle_error(self, request: object, client_address: object) -> None:
        log.debug("a request from %s broke off", client_address)
