"""Heads of requests: as large as proxies make them, too large, or not HTTP; counted and logged like other refusals."""

import json
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import Process, Receiver, wait_until

pytestmark = pytest.mark.xdist_group("heads")  # they share what takes long to start
NOWHERE = "redis://127.0.0.1:1/0"
BODY = b'{"userID":"u","callbackCommand":"callbackUserOfflineCommand","seq":1,"operationID":"op"}'
REST = b"Host: x\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n" % len(BODY)
FIRST = b"POST / HTTP/1.1\r\n"

Keep = Callable[[Process], Process]


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    receiver = Receiver(tmp_path_factory.mktemp("heads"), NOWHERE)
    yield receiver
    receiver.kill()


def ask(receiver: Receiver, *pieces: bytes) -> bytes:
    """Sends these pieces, a moment apart. The answer."""
    with socket.create_connection(("127.0.0.1", receiver.port), 10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        answer = b""
        try:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(0.01 if len(pieces) > 1 else 0)
            while got := connection.recv(65536):
                answer += got
        except ConnectionError:
            pass  # it sends on, and is cut off
        return answer


def headers(count: int, size: int) -> bytes:
    return b"".join(b"X-%03d: " % number + b"y" * (size - 9) + b"\r\n" for number in range(count))


LARGE = {
    "a header of 8 KB": FIRST + REST + headers(1, 8192),
    "a header of 30 KB": FIRST + REST + headers(1, 30_000),
    "128 headers": FIRST + REST + headers(124, 100),
    "31 KB in all": FIRST + REST + headers(31, 1000),
    "a URL of 5 KB": b"POST /callbackUserOfflineCommand?a=" + b"x" * 5000 + b" HTTP/1.1\r\n" + REST,
}


@pytest.mark.parametrize("head", LARGE.values(), ids=LARGE)
def test_a_head_as_large_as_proxies_make_it_is_read(edge: Receiver, head: bytes) -> None:
    whole = head + b"\r\n" + BODY
    assert ask(edge, whole).startswith(b"HTTP/1.1 200 ")
    pieces = [whole[at : at + 4000] for at in range(0, len(whole), 4000)]
    assert ask(edge, *pieces).startswith(b"HTTP/1.1 200 ")
    body = BODY[:-1] + b',"more":"' + b"x" * 15_000 + b'"}'  # which is not taken for a head
    large = head.replace(b"Length: %d" % len(BODY), b"Length: %d" % len(body)) + b"\r\n" + body
    assert ask(edge, large[:-5000], large[-5000:]).startswith(b"HTTP/1.1 200 ")


TOO_LARGE = {
    "129 headers": FIRST + REST + headers(125, 100),
    "a header of 33 KB": FIRST + REST + headers(1, 33_000),
    "many of 1 KB": FIRST + REST + headers(33, 1000),
    "a URL of 33 KB": b"POST /?a=" + b"x" * 33_000 + b" HTTP/1.1\r\n" + REST,
}


@pytest.mark.parametrize("head", TOO_LARGE.values(), ids=TOO_LARGE)
def test_a_head_that_is_too_large_is_refused_in_our_own_words(edge: Receiver, head: bytes) -> None:
    events = edge.readiness()[1]["journal_events"]
    before = counted(edge, 431)
    whole = head + b"\r\n" + BODY
    answer = ask(edge, whole)
    assert answer.startswith(b"HTTP/1.0 431 "), answer
    body = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert (body["actionCode"], body["errCode"], body["nextCode"]) == (1, 431, 0)
    assert body["errDlt"] == "head: at most 128 headers and 32 KB in all"
    ask(edge, *(whole[at : at + 4000] for at in range(0, len(whole), 4000)))
    assert counted(edge, 431) == before + 2
    assert edge.readiness()[1]["journal_events"] == events
    wait_until(lambda: "refused what came from 127.0.0.1: 431 the request's head is too large" in edge.text())


def test_a_trailer_that_is_too_large_ends_the_request(edge: Receiver) -> None:
    chunks = b"%x\r\n%s\r\n0\r\n" % (len(BODY), BODY)
    head = FIRST + REST.partition(b"Content-Length")[0] + b"Transfer-Encoding: chunked\r\n\r\n"
    assert ask(edge, head + chunks + headers(3, 1000), b"\r\n").startswith(b"HTTP/1.1 200 ")
    began = time.monotonic()
    assert ask(edge, head + chunks, headers(20, 1000), headers(20, 1000)).startswith(b"HTTP/1.1 400 ")
    assert time.monotonic() - began < 5


def test_a_head_that_never_ends_keeps_no_memory(edge: Receiver) -> None:
    before = resident_mb(edge)
    sockets = [socket.create_connection(("127.0.0.1", edge.port), 10) for _ in range(50)]
    for each in sockets:
        each.setblocking(False)
        each.send(FIRST + REST)
    for _ in range(100):
        for each in sockets:
            try:
                each.send(headers(1, 20_000))
            except BlockingIOError:
                pass
            except ConnectionError:
                continue
        time.sleep(0.01)
    assert resident_mb(edge) - before < 30
    for each in sockets:
        each.close()


def resident_mb(receiver: Receiver) -> float:
    status = Path(f"/proc/{receiver.popen.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def counted(receiver: Receiver, status: int) -> float:
    """How many refusals were of input that was not a request."""
    with urllib.request.urlopen(f"http://127.0.0.1:{receiver.admin_port}/metrics") as page:
        text = page.read().decode()
    labels = f'{{command="other",outcome="refused",shape="none",status="{status}"}}'
    return sum(float(line.split()[1]) for line in text.splitlines() if f"presence_callbacks_total{labels}" in line)


NO_HTTP = [
    (b"hello s3cret\r\n\r\n", "not HTTP. request line: cannot be read"),
    (b"POST / HTTP/9.9 s3cret\r\n\r\n", "not HTTP. request line: cannot be read"),
    (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        "HTTPS, and HTTP is spoken here. URL: must begin with http",
    ),
    (b"POST /?s3cret HTTP/1.1\r\n\r\n", "HTTP that cannot be read. head: Missing 'Host' header in request"),
    (b"POST / HTTP/1.1\r\ns3cret\r\n\r\n", "HTTP that cannot be read. head: Invalid header token"),
    (b"POST / HTTP/1.1\r\nHost: x\r\nX: s3cret\0\r\n\r\n", "HTTP that cannot be read. head: "),
    (b"POST / HTTP/1.1\r\nHost: s3cret\r\nHost: x\r\n\r\n", "HTTP that cannot be read. head: Duplicate 'Host' header"),
    (b"POST s3cret:// HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP that cannot be read. head: "),
]


@pytest.mark.parametrize(("data", "says"), NO_HTTP)
def test_what_cannot_be_read_is_counted_and_said_and_not_quoted(
    tmp_path: Path, keep: Keep, data: bytes, says: str
) -> None:
    receiver = Receiver(tmp_path, NOWHERE)
    keep(receiver)
    answer = ask(receiver, data)
    assert answer.startswith(b"HTTP/1.0 400 "), answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["errCode"] == 400
    assert counted(receiver, 400) == 1
    wait_until(lambda: f"refused what came from 127.0.0.1: 400 this is {says}" in receiver.text())
    (refused,) = receiver.readiness()[1]["refused"]
    assert refused["probe"] == says.startswith("not HTTP")  # an https:// too many may be OpenIM's
    assert "s3cret" not in receiver.text() + answer.decode() + refused["detail"]
