"""A receiver that is told to stop, and one that takes its place: no request is lost on its way."""

import asyncio
import errno
import re
import shutil
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trustme
from aiohttp import web
from hostile import WHOLE
from support import ROOT, Hasty, Process, Receiver, Server, free_port, wait_until

from receiver.http.listening import Listener, bind
from receiver.http.server import Server as HttpServer

Keep = Callable[[Process], Process]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for this file alone: the kind of server makes no difference here."""
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


@pytest.fixture(params=["1", "2"], ids=["one process", "two processes"])
def receiver(request: pytest.FixtureRequest, server: Server, tmp_path: Path, keep: Keep) -> Receiver:
    return start(tmp_path, server, keep, processes=request.param)


def start(directory: Path, server: Server, keep: Keep, **settings: str) -> Receiver:
    receiver = Receiver(directory, server.url, **settings)
    keep(receiver)
    wait_until(lambda: receiver.readiness()[0] == 200)
    return receiver


Connect = Callable[[int], socket.socket]


@pytest.fixture
def connect() -> Iterator[Connect]:
    with ExitStack() as sockets:
        yield lambda port: sockets.enter_context(socket.create_connection(("127.0.0.1", port), 10))


def ask(connection: socket.socket, data: bytes = WHOLE) -> bytes:
    connection.sendall(data)
    return connection.recv(4096)


def tell_to_stop(receiver: Receiver) -> None:
    """Sends SIGTERM, and waits until nobody listens: from then on each answer is its connection's last."""
    receiver.popen.terminate()
    wait_until(lambda: not listens(receiver.port))


def listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.1)
        return probe.connect_ex(("127.0.0.1", port)) != errno.ECONNREFUSED


def is_last(answer: bytes) -> bool:
    """Whether the callback was accepted, and the answer says that it is the last on its connection."""
    return answer.startswith(b"HTTP/1.1 200 ") and b"connection: close" in answer.lower()


def test_a_request_on_its_way_over_a_kept_connection_is_answered(receiver: Receiver, connect: Connect) -> None:
    kept = [connect(receiver.port) for _ in range(8)]
    for each in kept:
        assert b"connection: close" not in ask(each).lower()
    tell_to_stop(receiver)
    for each in kept:
        time.sleep(0.1)
        assert is_last(ask(each))
        assert each.recv(1) == b""
    assert receiver.popen.wait(20) == 0


def test_what_it_has_begun_to_read_is_answered(receiver: Receiver, connect: Connect) -> None:
    half_a_head, half_a_body = connect(receiver.port), connect(receiver.port)
    half_a_head.sendall(WHOLE[:20])
    half_a_body.sendall(WHOLE[:-20])
    time.sleep(0.2)
    receiver.popen.terminate()
    time.sleep(2.5)  # longer than it waits for connections that are idle
    assert is_last(ask(half_a_head, WHOLE[20:]))
    assert is_last(ask(half_a_body, WHOLE[-20:]))
    assert receiver.popen.wait(20) == 0


def test_requests_sent_together_are_all_answered(receiver: Receiver, connect: Connect) -> None:
    kept = connect(receiver.port)
    ask(kept)
    tell_to_stop(receiver)
    kept.sendall(WHOLE * 3)
    answers = b""
    while piece := kept.recv(4096):
        answers += piece
    assert answers.count(b"HTTP/1.1 200 ") == 3
    assert answers.lower().count(b"connection: close") == 1


def test_who_has_connected_and_is_not_yet_accepted_is_let_in(connect: Connect) -> None:
    async def main() -> None:
        async def handle(request: web.BaseRequest) -> web.Response:
            return web.Response(text="here")

        (bound,) = bind("127.0.0.1", 0, "PORT")
        port = bound.getsockname()[1]
        server = HttpServer(handle, lambda *_: web.Response(status=400))
        listener = Listener(server, [bound])
        await listener.start("127.0.0.1", port, "PORT")
        waiting = [connect(port) for _ in range(50)]  # all in one turn of the loop, so that none is accepted
        for each in waiting:
            each.sendall(WHOLE)
        await listener.stop()
        with pytest.raises(ConnectionRefusedError):
            connect(port)
        await server.stop(asyncio.Event())
        assert all(each.recv(4096).startswith(b"HTTP/1.1 200 ") for each in waiting)

    asyncio.run(main())


def test_who_comes_at_the_last_moment_is_neither_let_in_nor_turned_away(connect: Connect) -> None:
    async def main() -> None:
        def serve(name: str) -> HttpServer:
            async def handle(request: web.BaseRequest) -> web.Response:
                return web.Response(headers={"X-By": name})

            return HttpServer(handle, lambda *_: web.Response(status=400))

        (bound,) = bind("127.0.0.1", 0, "PORT", reuse_port=True)
        port = bound.getsockname()[1]
        first, second = serve("first"), serve("second")
        stopping = Listener(first, [bound])
        await stopping.start("127.0.0.1", port, "PORT")
        stop = asyncio.create_task(stopping.stop())
        await asyncio.sleep(0)
        asking = asyncio.create_task(asyncio.to_thread(lambda: ask(connect(port))))
        await stop
        listening = Listener(second, bind("127.0.0.1", port, "PORT", reuse_port=True))
        await listening.start("127.0.0.1", port, "PORT")
        assert b"X-By: second" in await asking
        await listening.stop()
        for server in (first, second):
            await server.stop(asyncio.Event())

    asyncio.run(main())


def test_it_says_so_at_once_and_listens_as_long_as_it_was_told(
    server: Server, tmp_path: Path, keep: Keep, connect: Connect
) -> None:
    receiver = start(tmp_path, server, keep, stop_delay_seconds="2", processes="2")
    began = time.monotonic()
    receiver.popen.terminate()
    wait_until(lambda: receiver.readiness()[0] == 503)
    assert "told to stop" in receiver.readiness()[1]["trouble"]
    assert time.monotonic() - began < 0.5
    while time.monotonic() - began < 1.5:
        with connect(receiver.port) as newcomer:
            assert b"connection: close" not in ask(newcomer).lower()
    assert receiver.popen.wait(20) == 0
    assert time.monotonic() - began > 2


def test_told_twice_it_waits_for_nobody(server: Server, tmp_path: Path, keep: Keep, connect: Connect) -> None:
    receiver = start(tmp_path, server, keep, stop_delay_seconds="60")
    idle = connect(receiver.port)
    ask(idle)
    receiver.popen.terminate()
    wait_until(lambda: receiver.readiness()[0] == 503)
    receiver.popen.terminate()
    assert receiver.popen.wait(10) == 0


def test_without_connections_there_is_nothing_to_wait_for(
    server: Server, tmp_path: Path, keep: Keep, connect: Connect
) -> None:
    receiver = Hasty(tmp_path, server.url, {"http.server.LINGER_SECONDS": 30})
    keep(receiver)
    with connect(receiver.port) as gone:
        ask(gone)
    assert receiver.stop(15) == 0


class Client:
    """Sends as Go does: on an idle connection of its pool, or a new one; a POST that got no answer is not repeated."""

    def __init__(self, port: int, senders: int = 32, rate: float = 600, tls: ssl.SSLContext | None = None) -> None:
        self.port, self.senders, self.rate, self.tls = port, senders, rate, tls
        self.sent = self.lost = 0
        self.stopping = False

    async def run(self) -> None:
        began = asyncio.get_running_loop().time()
        await asyncio.gather(*(self._send(began, first) for first in range(self.senders)))

    async def _send(self, began: float, number: int) -> None:
        loop = asyncio.get_running_loop()
        reader = writer = None
        while not self.stopping:
            await asyncio.sleep(began + number / self.rate - loop.time())
            number += self.senders
            self.sent += 1
            try:
                if reader is None or reader.at_eof() or reader.exception():
                    reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=self.tls)
                writer.write(WHOLE)
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
                await reader.readexactly(int(head.lower().split(b"content-length:")[1].split()[0]))
                self.lost += not head.startswith(b"HTTP/1.1 200 ")
                if b"connection: close" in head.lower():
                    writer.close()
                    reader = None
            except (OSError, EOFError, TimeoutError, asyncio.IncompleteReadError):
                self.lost += 1
                reader = None


def test_a_receiver_replaced_on_its_port_under_load_loses_nothing(server: Server, tmp_path: Path, keep: Keep) -> None:
    port = ""

    async def replace_twice(client: Client, receiver: Receiver) -> None:
        load = asyncio.create_task(client.run())
        for number in range(2):
            await asyncio.sleep(0.5)
            another = await asyncio.to_thread(start, tmp_path / str(number), server, keep, processes="2", port=port)
            assert await asyncio.to_thread(receiver.stop) == 0
            receiver = another
        await asyncio.sleep(0.5)
        client.stopping = True
        await load

    receiver = start(tmp_path, server, keep, processes="2")
    port = str(receiver.port)
    client = Client(receiver.port)
    asyncio.run(replace_twice(client, receiver))
    assert client.sent > 1000
    assert client.lost == 0


@pytest.fixture
def service_manager() -> Iterator[socket.socket]:
    """As much of systemd as a receiver speaks to. Its name is an abstract one, which the kernel chose."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.settimeout(20)
        told.bind("")
        yield told


def restart(receiver: Receiver, service_manager: socket.socket) -> None:
    """As `systemctl restart` does for a unit of `Type=notify`."""
    receiver.environment["NOTIFY_SOCKET"] = service_manager.getsockname().decode().replace("\0", "@")
    assert receiver.stop() == 0
    receiver.start()
    assert service_manager.recv(100) == b"READY=1"


def test_the_service_manager_hears_once_when_it_listens(
    receiver: Receiver, service_manager: socket.socket, connect: Connect
) -> None:
    restart(receiver, service_manager)
    for _ in range(8):
        assert ask(connect(receiver.port)).startswith(b"HTTP/1.1 200 ")
    assert receiver.stop() == 0
    service_manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        service_manager.recv(100)


def test_a_service_manager_that_is_gone_stops_no_receiver(receiver: Receiver, connect: Connect) -> None:
    receiver.environment["NOTIFY_SOCKET"] = "/nowhere/notify"
    assert receiver.stop() == 0
    receiver.start()
    wait_until(lambda: "the service manager could not be told that the receiver is ready" in receiver.text())
    assert ask(connect(receiver.port)).startswith(b"HTTP/1.1 200 ")


def test_the_receivers_of_the_units_restarted_in_turn_lose_nothing(
    server: Server, tmp_path: Path, keep: Keep, service_manager: socket.socket
) -> None:
    unit = (ROOT / "deploy" / "systemd" / "presence-receiver@.service").read_text()
    processes = re.findall(r"^Environment=.*\bPRESENCE_PROCESSES=(\d+)", unit, re.MULTILINE)[-1]
    assert "\nType=notify\n" in unit
    port, journal = str(free_port()), str(tmp_path / "journal")
    receivers = [
        start(tmp_path / name, server, keep, processes=processes, port=port, journal_dir=journal)
        for name in ("first", "second")
    ]

    async def restart_each(client: Client) -> None:
        load = asyncio.create_task(client.run())
        for receiver in receivers:
            await asyncio.to_thread(restart, receiver, service_manager)
        await asyncio.sleep(0.5)
        client.stopping = True
        await load

    client = Client(int(port))
    asyncio.run(restart_each(client))
    assert client.sent > 1000
    assert client.lost == 0


NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


class Nginx(Process):
    """nginx with the lines of docs/access.md, except for ports and paths."""

    def __init__(self, directory: Path, first: int, second: int) -> None:
        self.port = free_port()
        ca = trustme.CA()
        ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(directory / "both.pem")
        self.tls = ssl.create_default_context()
        ca.configure_trust(self.tls)
        lines = (ROOT / "docs" / "access.md").read_text().split("```nginx\n")[1].split("```")[0]
        for documented, here in (
            ("127.0.0.1:10006 ", f"127.0.0.1:{first} "),
            ("127.0.0.1:10007 ", f"127.0.0.1:{second} "),
            ("listen 443 ", f"listen 127.0.0.1:{self.port} "),
            ("/etc/ssl/presence.pem", str(directory / "both.pem")),
            ("/etc/ssl/presence.key", str(directory / "both.pem")),
        ):
            assert lines.count(documented) == 1, documented
            lines = lines.replace(documented, here)
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        places = "".join(f"{kind}_temp_path {directory / kind};" for kind in kinds)
        settings = "daemon off; pid nginx.pid; error_log stderr; events {} http { access_log off; "
        (directory / "nginx.conf").write_text(f"{settings}{places}{lines}}}")
        command = [str(NGINX), "-p", str(directory), "-c", str(directory / "nginx.conf"), "-e", "stderr"]
        super().__init__(command, {}, directory, "nginx")
        wait_until(self._listens, what="nginx")

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@pytest.mark.skipif(NGINX is None, reason="there is no nginx")
def test_receivers_replaced_behind_nginx_as_documented_lose_nothing(server: Server, tmp_path: Path, keep: Keep) -> None:
    receivers = [start(tmp_path / name, server, keep) for name in ("first", "second")]
    nginx = Nginx(tmp_path, receivers[0].port, receivers[1].port)
    keep(nginx)

    async def replace_each_twice(client: Client) -> None:
        load = asyncio.create_task(client.run())
        for receiver in receivers * 2:
            await asyncio.sleep(0.5)
            assert await asyncio.to_thread(receiver.stop) == 0
            await asyncio.sleep(0.5)
            receiver.start()
            await asyncio.to_thread(receiver.wait)
        client.stopping = True
        await load

    client = Client(nginx.port, tls=nginx.tls)
    asyncio.run(replace_each_twice(client))
    assert client.sent > 2000
    assert client.lost == 0, nginx.text()
