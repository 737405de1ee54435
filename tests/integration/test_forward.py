"""OpenIM's other callbacks, passed on to a real server: byte for byte, and without harm to others if that one hangs."""

import http.client
import json
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import Hasty, Process, Receiver, wait_until

NOWHERE = "redis://127.0.0.1:1/0"
JSON = {"Content-Type": "application/json"}
OURS = b'{"userID":"u","callbackCommand":"callbackUserOfflineCommand","seq":1,"operationID":"op"}'
FOREIGN = b'{"callbackCommand":"callbackBeforeSendSingleMsgCommand","content":"\xc3\xa9 \\u0000"}'
OF_FOREIGN = "/callbackBeforeSendSingleMsgCommand"
ANSWER = b'HTTP/1.1 201 Made\r\nX-Odd: Yes\r\nContent-Length: 15\r\n\r\n{"errCode": 17}'

Keep = Callable[[Process], Process]


@dataclass
class Request:
    line: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


class Upstream:
    """A business server: keeps what it is sent, and answers with `answer`, or never if that is empty.

    is_hasty: it answers before it has read the body.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.connections = 0
        self.answer = ANSWER
        self.is_hasty = False
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=500)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as file:
            while line := file.readline():
                fields = [field.decode("latin-1").rstrip("\r\n") for field in iter(file.readline, b"\r\n")]
                headers = [(name, value.strip()) for name, _, value in (field.partition(":") for field in fields)]
                request = Request(line.decode().rstrip(), headers, b"")
                if self.is_hasty:
                    connection.sendall(self.answer)
                    return
                if request.header("Transfer-Encoding"):
                    while size := int(file.readline(), 16):
                        request.body += file.read(size)
                        file.readline()
                    file.readline()
                else:
                    request.body = file.read(int(request.header("Content-Length") or 0))
                self.requests.append(request)
                if not self.answer:
                    time.sleep(20)
                try:
                    connection.sendall(self.answer)
                except OSError:
                    return
                if self.answer.startswith(b"HTTP/1.0"):
                    return  # its end is the answer's end; if it were kept and then closed, the next request would fail

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    server = Upstream()
    yield server
    server.close()


@pytest.fixture
def start(tmp_path: Path, keep: Keep, upstream: Upstream) -> Callable[..., Receiver]:
    def start(**settings: str) -> Receiver:
        receiver = Receiver(tmp_path, NOWHERE, **{"forward_url": upstream.url, **settings})
        keep(receiver)
        return receiver

    return start


def test_a_foreign_callback_goes_on_as_it_came_and_its_answer_comes_back_as_it_is(
    upstream: Upstream, start: Callable[..., Receiver]
) -> None:
    receiver = start(forward_url=f"{upstream.url}/open%20im/", callback_path="/s3cret")
    with socket.create_connection(("127.0.0.1", receiver.port), 10) as connection:
        connection.sendall(
            b"POST /s3cret/cb%%2Fx/callbackBeforeSendSingleMsgCommand?contenttype=json&a=%%41+b HTTP/1.1\r\n"
            b"Host: receiver\r\ncontent-type: application/json\r\nOPERATIONID: op \xc3\xa9\r\n"
            b"X-Twice: 1\r\nX-Twice: 2\r\n"
            b"Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nTE: trailers\r\nExpect: 100-continue\r\n"
            b"Authorization: Basic b3BlbmltOmdlaGVpbQ==\r\nContent-Length: %d\r\n\r\n" % len(FOREIGN)
        )
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(FOREIGN)
        assert connection.recv(4096) == ANSWER
    (request,) = upstream.requests
    path = "/open%20im/cb%2Fx/callbackBeforeSendSingleMsgCommand?contenttype=json&a=%41+b"
    assert request.line == f"POST {path} HTTP/1.1"
    via = request.header("Via") or ""
    assert via.startswith("1.1 openim-presence-")
    assert sorted(request.headers) == sorted(
        [
            ("Host", f"127.0.0.1:{upstream.port}"),
            ("content-type", "application/json"),
            ("OPERATIONID", "op \xc3\xa9"),
            ("X-Twice", "1"),
            ("X-Twice", "2"),
            ("Authorization", "Basic b3BlbmltOmdlaGVpbQ=="),
            ("Content-Length", str(len(FOREIGN))),
            ("Via", via),
        ]
    )
    assert request.body == FOREIGN
    assert receiver.readiness()[1]["journal_events"] == 0


@pytest.mark.parametrize("target", ["/", OF_FOREIGN])
def test_wherever_the_command_is_named_the_body_arrives_whole(
    upstream: Upstream, start: Callable[..., Receiver], target: str
) -> None:
    receiver = start()
    large = FOREIGN[:-1] + b',"more":"' + b"x" * 3_000_000 + b'"}'
    for body in (FOREIGN, large):
        assert receiver.post(target, JSON, body) == (201, b'{"errCode": 17}')
        assert upstream.requests[-1].body == body
    chunks = iter([large[:100_000], large[100_000:]])
    connection = http.client.HTTPConnection("127.0.0.1", receiver.port, timeout=10)
    connection.request("POST", target, chunks, {**JSON, "Transfer-Encoding": "chunked"}, encode_chunked=True)
    assert connection.getresponse().status == 201
    connection.close()
    assert upstream.requests[-1].body == large
    assert len(upstream.requests) == 3
    assert receiver.post("/", JSON, OURS)[0] == 200


ANSWERS = [
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", b"abcde"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
    (b"HTTP/1.1 200 OK\r\nX-Large: %s\r\nContent-Length: 1\r\n\r\nx" % (b"y" * 20_000), b"x"),
    (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", b""),
    (b"HTTP/1.0 500 Oh\r\n\r\nno length", b"no length"),
    (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\n\x1f\x8b\x00", b"\x1f\x8b\x00"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + b"y" * 300_000, b"y" * 300_000),
]


def test_answers_of_every_form_come_back(upstream: Upstream, start: Callable[..., Receiver]) -> None:
    receiver = start()
    connection = http.client.HTTPConnection("127.0.0.1", receiver.port, timeout=10)
    for answer, body in ANSWERS * 2:  # over one connection, and it can be used again
        upstream.answer = answer
        connection.request("POST", OF_FOREIGN, FOREIGN, JSON)
        response = connection.getresponse()
        assert response.status == int(answer.split()[1])
        assert response.read() == body
        assert response.getheader("Server") is None
        assert response.getheader("Location") == ("http://127.0.0.1:1/" if b"302" in answer else None)
    connection.close()


def test_connections_to_the_upstream_are_kept(upstream: Upstream, start: Callable[..., Receiver]) -> None:
    receiver = start()
    for _ in range(5):
        assert receiver.post(OF_FOREIGN, JSON, FOREIGN)[0] == 201
    assert upstream.connections == 1


def test_an_upstream_with_credentials_of_its_own_is_not_shown_ours(
    upstream: Upstream, start: Callable[..., Receiver]
) -> None:
    receiver = start(forward_url=f"http://us%40er:pa%3Ass@127.0.0.1:{upstream.port}", basic_auth="openim:geheim")
    assert receiver.post(OF_FOREIGN, JSON, FOREIGN)[0] == 401
    assert receiver.post(OF_FOREIGN, {**JSON, "Authorization": "Basic b3BlbmltOmdlaGVpbQ=="}, FOREIGN)[0] == 201
    assert upstream.requests[-1].header("Authorization") == "Basic dXNAZXI6cGE6c3M="
    assert len(upstream.requests) == 1


def test_what_is_checked_before_the_command_is_checked_before_forwarding(
    upstream: Upstream, start: Callable[..., Receiver]
) -> None:
    receiver = start(callback_path="/s3cret", forward_max_bytes="1000", max_body_bytes="256")
    assert receiver.post(OF_FOREIGN, JSON, FOREIGN)[0] == 404
    assert receiver.post("/s3cret" + OF_FOREIGN, JSON, FOREIGN, "PUT")[0] == 405
    assert receiver.post("/s3cret" + OF_FOREIGN, {}, FOREIGN)[0] == 415
    assert receiver.post("/s3cret?command=nonsense", JSON, FOREIGN)[0] == 400
    for target in (OF_FOREIGN, ""):
        status, body = receiver.post("/s3cret" + target, JSON, FOREIGN + b" " * 1000)
        assert status == 413
        assert b"PRESENCE_FORWARD_MAX_BYTES" in body
    status, body = receiver.post("/s3cret/callbackUserOfflineCommand", JSON, OURS + b" " * 200)
    assert status == 413
    assert b"PRESENCE_MAX_BODY_BYTES" in body
    assert receiver.post("/s3cret", JSON, OURS + b" " * 200)[0] == 200  # its URL does not name it
    assert upstream.requests == []


def test_a_body_that_grows_too_large_on_its_way_is_refused(upstream: Upstream, start: Callable[..., Receiver]) -> None:
    receiver = start(forward_max_bytes="1000")
    with socket.create_connection(("127.0.0.1", receiver.port), 10) as connection:
        head = f"POST {OF_FOREIGN} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        connection.sendall(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n")
        connection.sendall(b"400\r\n%s\r\n" % (b" " * 1024))
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")
    assert receiver.post(OF_FOREIGN, JSON, FOREIGN)[0] == 201


def test_an_upstream_that_is_down_is_one_plain_sentence(start: Callable[..., Receiver]) -> None:
    receiver = start(forward_url="http://127.0.0.1:1")
    status, body = receiver.post(OF_FOREIGN, JSON, FOREIGN)
    assert status == 502
    assert body == b"The server behind PRESENCE_FORWARD_URL cannot be reached, or does not speak HTTP.\n"
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(body)
    assert receiver.post(OF_FOREIGN, JSON, FOREIGN)[0] == 502
    line = "a callback was not forwarded to http://127.0.0.1:1: the server behind"
    wait_until(lambda: receiver.text().count(line) == 2)


@pytest.mark.parametrize("target", ["/", OF_FOREIGN])
def test_openim_goes_on_without_an_upstream_that_is_down_or_late_if_it_is_to(
    upstream: Upstream, tmp_path: Path, keep: Keep, target: str
) -> None:
    limits = {"forward.forwarder.TOTAL_SECONDS": 0.5}
    receiver = Hasty(tmp_path, NOWHERE, limits, forward_url=upstream.url, forward_on_failure="continue")
    keep(receiver)
    assert receiver.post(target, JSON, FOREIGN) == (201, b'{"errCode": 17}')  # its own word counts
    upstream.answer = b""
    late, by_late = receiver.post(target, JSON, FOREIGN)
    upstream.answer = b"rubbish\r\n\r\n"
    wrong, by_wrong = receiver.post(target, JSON, FOREIGN)
    upstream.close()
    down, by_down = receiver.post(target, JSON, FOREIGN)
    assert {late, wrong, down} == {200}
    for body in (by_late, by_wrong, by_down):
        answer = json.loads(body)
        assert [answer[name] for name in ("actionCode", "errCode", "nextCode", "errDlt")] == [0, 0, 0, ""]
        assert "the server behind PRESENCE_FORWARD_URL" in answer["errMsg"]
    assert 'presence_forwards_total{outcome="failed"} 3.0' in metrics(receiver)
    wait_until(lambda: receiver.text().count("a callback was not forwarded to") == 3)
    assert receiver.post("/callbackUserOfflineCommand", JSON, b"{}")[0] == 400


def metrics(receiver: Receiver) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{receiver.admin_port}/metrics") as page:
        return page.read().decode()


def test_an_upstream_that_speaks_no_http_is_one_too(upstream: Upstream, start: Callable[..., Receiver]) -> None:
    receiver = start()
    for answer in (b"rubbish\r\n\r\n", b"\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"):
        upstream.answer = answer
        assert receiver.post(OF_FOREIGN, JSON, FOREIGN)[0] == 502
    assert "Traceback" not in receiver.text()


def test_an_upstream_that_hangs_holds_up_nobody_of_ours(upstream: Upstream, tmp_path: Path, keep: Keep) -> None:
    receiver = Hasty(
        tmp_path, NOWHERE, {"forward.forwarder.TOTAL_SECONDS": 2.0}, forward_ours="1", forward_url=upstream.url
    )
    keep(receiver)
    upstream.answer = b""
    before = resident_mb(receiver)
    body = FOREIGN[:-1] + b',"more":"' + b"x" * 300_000 + b'"}'
    with ThreadPoolExecutor(350) as pool:
        began = time.monotonic()
        foreign = [pool.submit(receiver.post, OF_FOREIGN if n % 2 else "/", JSON, body) for n in range(350)]
        times = []
        while len(times) < 200 or not foreign[0].done():
            started = time.monotonic()
            assert receiver.post("/", JSON, OURS)[0] == 200
            times.append(time.monotonic() - started)
        assert {future.result()[0] for future in foreign} <= {502, 503}
        # The clients are threads of this process, and slower than the receiver.
        assert time.monotonic() - began < 9
    assert sorted(times)[len(times) // 2] < 0.25
    assert resident_mb(receiver) - before < 150
    upstream.answer = ANSWER
    wait_until(lambda: receiver.post(OF_FOREIGN, JSON, FOREIGN)[0] == 201, what="the upstream to be used again")


def resident_mb(receiver: Receiver) -> float:
    status = Path(f"/proc/{receiver.popen.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def test_ours_are_copied_after_they_were_accepted(upstream: Upstream, start: Callable[..., Receiver]) -> None:
    receiver = start(forward_ours="1", forward_url=f"{upstream.url}/up")
    upstream.answer = b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"  # which has no effect
    assert receiver.post("/callbackExample/callbackUserOfflineCommand", JSON, OURS)[0] == 200
    assert receiver.post("/callbackExample", {}, OURS)[0] == 415
    wait_until(lambda: upstream.requests, what="the copy")
    (request,) = upstream.requests
    assert request.line == "POST /up/callbackExample/callbackUserOfflineCommand HTTP/1.1"
    assert request.body == OURS
    assert receiver.readiness()[1]["journal_events"] == 1


def test_an_answer_before_the_end_of_the_body_comes_back_too(
    upstream: Upstream, start: Callable[..., Receiver]
) -> None:
    receiver = start()
    upstream.is_hasty = True
    upstream.answer = b"HTTP/1.1 413 No\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno"
    with socket.create_connection(("127.0.0.1", receiver.port), 10) as connection:
        head = (
            f"POST {OF_FOREIGN} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 900000\r\n\r\n"
        )
        connection.sendall(head.encode() + b" " * 1000)
        assert connection.recv(4096) == b"HTTP/1.1 413 No\r\nContent-Length: 2\r\n\r\nno"
    assert receiver.post("/", JSON, OURS)[0] == 200
    assert "Traceback" not in receiver.text()


def test_a_loop_is_noticed(tmp_path: Path, keep: Keep, start: Callable[..., Receiver]) -> None:
    receiver = start()
    receiver.kill()
    receiver.environment["PRESENCE_FORWARD_URL"] = f"http://127.0.0.1:{receiver.port}"
    receiver.start()
    receiver.wait()
    status, body = receiver.post(OF_FOREIGN, JSON, FOREIGN)
    assert (status, body) == (502, b"PRESENCE_FORWARD_URL leads back to this receiver.\n")


GBK = "\u4e2d\u6587".encode("gbk")


@pytest.mark.parametrize("target", ["/", OF_FOREIGN])
def test_bytes_that_are_no_utf_8_go_on_and_come_back_as_they_are(
    upstream: Upstream, start: Callable[..., Receiver], target: str
) -> None:
    receiver = start()
    upstream.answer = b"HTTP/1.1 200 OK\r\nX-Name: %s\r\nContent-Length: 2\r\n\r\n{}" % GBK
    with socket.create_connection(("127.0.0.1", receiver.port), 10) as connection:
        head = f"POST {target}?a=%FF".encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        head += b"operationID: %s\r\nX-Latin: caf\xe9\r\nX-Text: caf\xc3\xa9\r\n" % GBK
        for chunked in (False, True):
            if chunked:
                rest = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(FOREIGN), FOREIGN)
            else:
                rest = b"Content-Length: %d\r\n\r\n%s" % (len(FOREIGN), FOREIGN)
            connection.sendall(head + rest)
            answer = b""
            while not answer.endswith(b"{}"):
                answer += connection.recv(4096)
            assert answer == upstream.answer
            request = upstream.requests[-1]
            assert request.header("operationID") == GBK.decode("latin-1")
            assert request.header("X-Latin") == "caf\xe9"
            assert request.header("X-Text") == "caf\xc3\xa9"
            assert request.line == f"POST {target}?a=%FF HTTP/1.1"
            assert request.body == FOREIGN
    assert len(upstream.requests) == 2


@pytest.mark.parametrize("path", ["/..", "/../admin", "/a/./b", "/%2e%2e/admin", "/a/..%2Fadmin", "/..;x/b", "/..%5Cb"])
def test_no_path_leads_out_of_the_upstreams(upstream: Upstream, start: Callable[..., Receiver], path: str) -> None:
    receiver = start(forward_url=f"{upstream.url}/open/im")
    status, body = receiver.post(path + OF_FOREIGN, JSON, FOREIGN)
    assert (status, json.loads(body)["errDlt"]) == (400, "path: must be without . and .. as segments")
    assert receiver.post("/a..b" + OF_FOREIGN, JSON, FOREIGN)[0] == 201
    assert len(upstream.requests) == 1


def test_no_line_of_the_log_has_the_upstreams_path(start: Callable[..., Receiver]) -> None:
    receiver = start(forward_url="http://user:geheim@127.0.0.1:1/s3cret", forward_ours="1")
    assert receiver.post(OF_FOREIGN, JSON, FOREIGN)[0] == 502
    assert receiver.post("/?token=t0k", JSON, OURS)[0] == 200
    wait_until(lambda: "a copy was not sent" in receiver.text())
    assert not {word for word in ("s3cret", "geheim", "t0k") if word in receiver.text()}
