"""Peers that are slow, silent, too many, read nothing, or send nonsense: OpenIM is still served."""

import http.client
import random
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hostile import HEAD, WHOLE
from support import ROOT, Hasty, Process, Receiver, wait_until

NOWHERE = "redis://127.0.0.1:1/0"

Keep = Callable[[Process], Process]

LIMITS: dict[str, float] = {
    "http.connections.HEAD_SECONDS": 0.5,
    "http.connections.UNREAD_SECONDS": 0.5,
    "http.body.BODY_SECONDS": 0.5,
    "http.connections.STRANGER_SECONDS": 1,
    "http.eviction.MOST_CONNECTIONS": 40,
    "http.visitors.MOST_VISITORS": 40,
    "http.visitors.FIRST_SECONDS": 1,
}


@pytest.fixture
def impatient(tmp_path: Path, keep: Keep) -> Receiver:
    receiver = Hasty(tmp_path, NOWHERE, LIMITS)
    keep(receiver)
    return receiver


@pytest.fixture
def connect() -> Iterator[Callable[[Receiver], socket.socket]]:
    sockets = []

    def connect(receiver: Receiver) -> socket.socket:
        sockets.append(socket.create_connection(("127.0.0.1", receiver.port), 10))
        return sockets[-1]

    yield connect
    for each in sockets:
        each.close()


Connect = Callable[[Receiver], socket.socket]


def ask(connection: socket.socket) -> bytes:
    connection.sendall(WHOLE)
    return connection.recv(4096)


def drip_until_cut(connection: socket.socket, data: bytes) -> bytes:
    """Sends a byte at a time until it is cut off. What was answered; fails if it is not cut off."""
    connection.settimeout(0.2)
    for at in range(50):
        try:
            connection.sendall(data[at : at + 1])
            return connection.recv(4096)
        except TimeoutError:
            continue
        except OSError:
            return b""
    raise AssertionError("still there after 10 s")


def test_a_head_that_comes_too_slowly_is_cut_off(impatient: Receiver, connect: Connect) -> None:
    kept = connect(impatient)
    assert ask(kept).startswith(b"HTTP/1.1 200 ")
    assert drip_until_cut(kept, HEAD + b"X: " + b"y" * 100) == b""


@pytest.mark.parametrize("framing", [b"Content-Length: 90\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n5a\r\n"])
def test_a_body_that_comes_too_slowly_is_cut_off(impatient: Receiver, connect: Connect, framing: bytes) -> None:
    slow = connect(impatient)
    slow.sendall(HEAD + framing)
    assert drip_until_cut(slow, b"{" * 90).startswith(b"HTTP/1.1 408 ")


def test_who_reads_no_answers_is_cut_off(impatient: Receiver, connect: Connect) -> None:
    deaf = connect(impatient)
    deaf.settimeout(10)
    with pytest.raises(ConnectionError):
        for _ in range(1000):
            deaf.sendall(WHOLE * 200)
    assert ask(connect(impatient)).startswith(b"HTTP/1.1 200 ")


def test_an_idle_stranger_is_cut_off_and_an_idle_acquaintance_is_kept(impatient: Receiver, connect: Connect) -> None:
    known, unknown, refused = connect(impatient), connect(impatient), connect(impatient)
    assert ask(known).startswith(b"HTTP/1.1 200 ")
    refused.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert refused.recv(4096).startswith(b"HTTP/1.1 405 ")
    assert unknown.recv(1) == b""
    assert refused.recv(1) == b""
    assert ask(known).startswith(b"HTTP/1.1 200 ")


def test_too_many_strangers_drive_out_each_other_and_not_who_is_known(impatient: Receiver, connect: Connect) -> None:
    known = [connect(impatient) for _ in range(4)]
    for each in known:
        assert ask(each).startswith(b"HTTP/1.1 200 ")
    for number in range(200):
        stranger = connect(impatient)
        stranger.sendall(HEAD if number % 2 else HEAD + b"Content-Length: 5\r\n\r\n")
        if number % 20 == 0:
            assert ask(connect(impatient)).startswith(b"HTTP/1.1 200 ")
    for each in known:
        assert ask(each).startswith(b"HTTP/1.1 200 ")
    wait_until(lambda: "more than 40 connections" in impatient.text())
    assert impatient.text().count("more than 40 connections") <= 2
    assert files(impatient) < 100


def files(receiver: Receiver) -> int:
    return len(list(Path(f"/proc/{receiver.popen.pid}/fd").iterdir()))


def visit(receiver: Receiver, sent: bytes) -> socket.socket:
    visitor = socket.create_connection(("127.0.0.1", receiver.admin_port), 10)
    visitor.sendall(sent)
    return visitor


def test_too_many_at_the_admin_port_drive_out_each_other_and_take_no_files(impatient: Receiver) -> None:
    watching = visit(impatient, b"GET /api/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert watching.recv(4096).startswith(b"HTTP/1.1 200 ")
    before = files(impatient)
    with ExitStack() as open_:
        for _ in range(300):
            open_.enter_context(visit(impatient, b"GET /metrics HTTP/1.1\r\n"))
        wait_until(lambda: files(impatient) <= before + 40)
        assert impatient.readiness()[1]["status"] == "ready"
        wait_until(lambda: files(impatient) <= before)  # none of them has sent a request in time
    while b"event: status" not in watching.recv(65536):  # it goes on; a timeout ends this
        pass
    watching.close()


def test_where_all_are_known_the_longest_idle_make_room(impatient: Receiver, connect: Connect) -> None:
    known = []
    for _ in range(60):
        known.append(connect(impatient))
        assert ask(known[-1]).startswith(b"HTTP/1.1 200 ")
    gone = sum(not is_open(each) for each in known)
    assert 20 <= gone < 30  # of 60, where there is room for 40
    assert all(is_open(each) for each in known[30:])


def is_open(connection: socket.socket) -> bool:
    try:
        return ask(connection).startswith(b"HTTP/1.1 200 ")
    except ConnectionError:
        return False


def resident_mb(receiver: Receiver) -> float:
    status = Path(f"/proc/{receiver.popen.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def test_two_hundred_hostile_peers_do_not_hold_up_a_good_one(tmp_path: Path, keep: Keep) -> None:
    receiver = Receiver(tmp_path, NOWHERE)
    keep(receiver)
    hostile = Process(
        [sys.executable, str(ROOT / "tests" / "hostile.py"), str(receiver.port), "200"], {}, tmp_path, "h"
    )
    keep(hostile)
    wait_until(lambda: "here" in hostile.text())
    wait_until(lambda: files(receiver) > 100, what="the hostile peers")
    # Of three rounds one must do: the machine may be busy with something else.
    assert any(p99_ms(receiver) < 100 for _ in range(3))
    assert resident_mb(receiver) < 150
    hostile.kill()
    wait_until(lambda: files(receiver) < 60, what="the hostile peers' connections to be let go")
    assert "Traceback" not in receiver.text()
    assert len(receiver.text().splitlines()) < 30
    assert receiver.post("/", {"Content-Type": "application/json"}, WHOLE.partition(b"\r\n\r\n")[2])[0] == 200


def p99_ms(receiver: Receiver) -> float:
    """The p99 of 400 answers at about 200/s, over two kept connections as a gateway has; each must be right."""
    kept = [http.client.HTTPConnection("127.0.0.1", receiver.port, timeout=10) for _ in range(2)]
    body = WHOLE.partition(b"\r\n\r\n")[2]
    times = []
    for number in range(400):
        began = time.perf_counter()
        kept[number % 2].request("POST", "/callbackUserOfflineCommand", body, {"Content-Type": "application/json"})
        response = kept[number % 2].getresponse()
        assert (response.status, b'"actionCode":0' in response.read()) == (200, True)
        times.append(time.perf_counter() - began)
        time.sleep(max(0, 0.005 - times[-1]))
    for each in kept:
        each.close()
    return sorted(times)[395] * 1000


def mutated(rng: random.Random) -> bytes:
    """A good request, or two, with a few bytes changed, removed, doubled or inserted."""
    data = bytearray(rng.choice([WHOLE, WHOLE * 2, HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\n{}\n\r\n0\r\n\r\n"]))
    spice = [
        *(b"\r\n", b"\0", b"\xff", b"%", b"://", b"?", b"HTTP/1.0", b"Content-Length: 9\r\n", b"Connection: close\r\n"),
        *(b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"Upgrade: h2c\r\nConnection: upgrade\r\n"),
    ]
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(data))
        change = rng.randrange(4)
        if change == 0:
            data[at] = rng.randrange(256)
        elif change == 1:
            del data[at : at + rng.randrange(20)]
        elif change == 2:
            data[at:at] = data[at : at + rng.randrange(200)]
        else:
            data[at:at] = rng.choice(spice)
        data = data or bytearray(b"P")
    return bytes(data)


def test_no_mutation_of_a_request_gets_a_500_or_stays(impatient: Receiver) -> None:
    rng = random.Random(20261123)
    for number in range(2000):
        data = mutated(rng)
        with socket.create_connection(("127.0.0.1", impatient.port), 10) as connection:
            answer = b""
            try:
                cut = rng.randrange(len(data) + 1)
                connection.sendall(data[:cut])
                connection.sendall(data[cut:])
                connection.shutdown(socket.SHUT_WR)
                while piece := connection.recv(65536):
                    answer += piece
            except TimeoutError:
                raise AssertionError((number, data, "is stuck")) from None
            except OSError:
                pass  # cut off
        for status in (line.split()[1] for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.")):
            assert status in (b"100", b"200") or status.startswith(b"4"), (number, data, answer)
        assert b"Traceback" not in answer
    assert "defect" not in impatient.text()
    wait_until(lambda: files(impatient) < 40, what="all connections to be let go")
    with socket.create_connection(("127.0.0.1", impatient.port), 10) as connection:
        assert ask(connection).startswith(b"HTTP/1.1 200 ")
