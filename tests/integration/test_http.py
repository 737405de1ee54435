"""The receiver's port, over real sockets: recorded requests go in, the contract's answers come out."""

import json
import socket
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support import Hasty, Process, Receiver, load_samples, same_answer, wait_until

from receiver.http.listening import bind
from shared.errors import SettingsError

pytestmark = pytest.mark.xdist_group("edge")  # they share what takes long to start
NOWHERE = "redis://127.0.0.1:1/0"  # the edge needs no Redis


@pytest.fixture(scope="module")
def receivers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[dict[str, Any]], Receiver]]:
    """One receiver for each set of settings that a sample asks for."""
    running: dict[str, Receiver] = {}

    def with_settings(settings: dict[str, Any]) -> Receiver:
        key = json.dumps(settings)
        if key not in running:
            texts = {name: str(value) for name, value in settings.items()}
            running[key] = Receiver(tmp_path_factory.mktemp("edge"), NOWHERE, **texts)
        return running[key]

    yield with_settings
    for receiver in running.values():
        receiver.kill()


@pytest.mark.parametrize(
    "sample",
    [sample for kind in ("accepted", "refused", "foreign") for sample in load_samples(kind)],
    ids=lambda sample: sample["name"],
)
def test_each_recorded_request_gets_its_answer(receivers: Any, sample: dict[str, Any]) -> None:
    receiver = receivers(sample.get("settings", {}))
    _, before = receiver.readiness()
    status, body = receiver.post(sample["target"], sample["headers"], sample["body"], sample["method"])
    assert status == sample["status"]
    assert same_answer(body, sample["answer"])
    _, after = receiver.readiness()
    assert after["journal_events"] - before["journal_events"] == (1 if status == 200 else 0)


@pytest.fixture
def edge(receivers: Any) -> Receiver:
    receiver: Receiver = receivers({})
    return receiver


def raw(edge: Receiver, data: bytes, *, and_close: bool = False) -> bytes:
    """Everything that is answered until the receiver closes. It is asked to close, or we close first."""
    with socket.create_connection(("127.0.0.1", edge.port), 10) as connection:
        connection.sendall(data)
        if and_close:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
        return answer


BODY = b'{"userID":"u","callbackCommand":"callbackUserOfflineCommand","seq":1,"operationID":"op"}'
CLOSE = b"Connection: close\r\n"
HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def test_a_method_that_is_not_post_is_told_which_is(edge: Receiver) -> None:
    answer = raw(edge, b"GET / HTTP/1.1\r\nHost: x\r\n" + CLOSE + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert b"\r\nAllow: POST\r\n" in answer


def test_a_chunked_body_is_read(edge: Receiver) -> None:
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (BODY[:10], BODY[10:]))
    answer = raw(edge, HEAD + CLOSE + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_a_chunked_body_is_bounded_too(edge: Receiver) -> None:
    chunk = b"%x\r\n%s\r\n" % (1024, b" " * 1024)
    answer = raw(edge, HEAD + CLOSE + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 17 + b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_client_that_waits_for_100_continue_gets_it(edge: Receiver) -> None:
    with socket.create_connection(("127.0.0.1", edge.port), 10) as connection:
        connection.sendall(HEAD + CLOSE + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY))
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(BODY)
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")


def test_a_client_of_http_1_0_gets_one_answer_alone(edge: Receiver) -> None:
    head = HEAD.replace(b"HTTP/1.1", b"HTTP/1.0") + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY)
    with socket.create_connection(("127.0.0.1", edge.port), 10) as connection:
        connection.sendall(head)
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(100)
        connection.settimeout(10)
        connection.sendall(BODY)
        assert connection.recv(100).startswith(b"HTTP/1.0 200 ")


def test_an_answer_is_whole_whether_or_not_the_connection_is_kept(edge: Receiver) -> None:
    rest = b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    kept, closed = raw(edge, HEAD + rest + HEAD + CLOSE + rest).split(b"HTTP/1.1 200 OK\r\n")[1:]
    for answer in (kept, closed):
        head, body = answer.split(b"\r\n\r\n")
        assert json.loads(body)["actionCode"] == 0
        assert b"Content-Length: %d" % len(body) in head
        assert b"Content-Type: application/json; charset=utf-8" in head
        assert b"Date: " in head


def test_pipelined_requests_are_answered_in_turn(edge: Receiver) -> None:
    rest = b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    assert raw(edge, (HEAD + rest) * 2 + HEAD + CLOSE + rest).count(b"HTTP/1.1 200 ") == 3


def test_a_client_that_says_no_more_gets_an_answer_to_all_that_it_said(
    edge: Receiver, tmp_path: Path, keep: Callable[[Process], Process]
) -> None:
    slow = Receiver(tmp_path, NOWHERE, journal_fsync="always")
    keep(slow)
    whole = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    for receiver in (edge, slow):
        for count in (1, 2, 40):
            for _ in range(10):
                assert raw(receiver, whole * count, and_close=True).count(b"HTTP/1.1 200 ") == count
    assert raw(edge, whole + whole[:-20], and_close=True).count(b"HTTP/1.1 ") == 2
    assert raw(edge, whole[:-20], and_close=True).startswith(b"HTTP/1.1 400 ")
    assert raw(edge, whole + HEAD, and_close=True).count(b"HTTP/1.1 ") == 1
    assert raw(edge, b"", and_close=True) == b""


def test_connections_that_end_with_their_answer_are_let_go(edge: Receiver) -> None:
    edge.post("/", {"Content-Type": "application/json"}, BODY)  # after which the journal's file is open
    files = Path(f"/proc/{edge.popen.pid}/fd")
    before = len(list(files.iterdir()))
    with ThreadPoolExecutor(20) as pool:
        answers = pool.map(lambda _: edge.post("/", {"Content-Type": "application/json"}, BODY), range(2000))
        assert {status for status, _ in answers} == {200}
    wait_until(lambda: len(list(files.iterdir())) <= before)


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n",
        b"hello\r\n\r\n",
        b"POST\r\n\r\n",
        b"POST / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        HEAD + b"Content-Length: 50\r\n\r\n" + BODY[:20],
        HEAD + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
        HEAD + b"Upgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_what_is_no_request_is_refused_or_cut_off(edge: Receiver, data: bytes) -> None:
    answer = raw(edge, data, and_close=True)
    assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")), answer
    assert b"Traceback" not in answer
    assert b"<html" not in answer
    status, _ = edge.post("/", {"Content-Type": "application/json"}, BODY)
    assert status == 200


def test_health_and_readiness_have_a_port_of_their_own(edge: Receiver) -> None:
    status, state = edge.readiness()
    assert (status, state["status"], state["redis"]) == (200, "ready", "down")
    status, _ = edge.post("/healthz", {}, b"", "GET")
    assert status == 405


def test_a_journal_that_takes_nothing_is_a_503_in_the_contracts_form(
    tmp_path: Path, keep: Callable[[Process], Process]
) -> None:
    (tmp_path / "journal").write_text("in the way")
    receiver = Receiver(tmp_path, NOWHERE)
    keep(receiver)
    status, body = receiver.post("/", {"Content-Type": "application/json"}, BODY)
    assert status == 503
    answer = json.loads(body)
    assert (answer["actionCode"], answer["errCode"], answer["nextCode"]) == (1, 503, 0)
    assert "cannot be written" in answer["errDlt"]
    status, state = receiver.readiness()
    assert status == 503
    assert "cannot be written" in state["trouble"]
    (tmp_path / "journal").unlink()
    assert receiver.post("/", {"Content-Type": "application/json"}, BODY)[0] == 200
    assert receiver.readiness()[0] == 200


def test_fsync_before_the_answer_is_to_be_had(tmp_path: Path, keep: Callable[[Process], Process]) -> None:
    receiver = Receiver(tmp_path, NOWHERE, journal_fsync="always")
    keep(receiver)
    for _ in range(20):
        assert receiver.post("/", {"Content-Type": "application/json"}, BODY)[0] == 200
    assert receiver.readiness()[1]["journal_events"] == 20


def test_refusals_are_told_for_each_status_and_peer_and_probes_hide_none(
    tmp_path: Path, keep: Callable[[Process], Process]
) -> None:
    receiver = Hasty(tmp_path, NOWHERE, {"http.refusals.SPAN_SECONDS": 1.0}, callback_path="/s3cret")
    keep(receiver)
    for _ in range(20):
        for _ in range(5):
            assert receiver.post("/s3cret/probe", {}, b"", "GET")[0] == 405
            raw(receiver, b"no HTTP\r\n\r\n", and_close=True)
            raw(receiver, b"", and_close=True)
        assert receiver.post("/wrong", {}, BODY)[0] == 404
        assert receiver.post("/s3cret", {"Content-Type": "application/json"}, b"{}")[0] == 400
    wait_until(lambda: "more like it in 1 s" in receiver.text())
    lines = receiver.text().splitlines()
    told = [line.partition("refused ")[2] for line in lines if "refused " in line]
    assert any(line.startswith("POST (some other path) from 127.0.0.1: 404 no callback") for line in told)
    assert any(line.startswith("POST (PRESENCE_CALLBACK_PATH) from 127.0.0.1: 400 a field is wrong") for line in told)
    assert sum("this is not HTTP" in line for line in told) == 1
    assert not any("GET" in line for line in told)
    counts = {
        (each["status"], each["probe"]): (each["count"], each["peer"]) for each in receiver.readiness()[1]["refused"]
    }
    assert counts == {
        (400, False): (20, "127.0.0.1"),
        (404, False): (20, "127.0.0.1"),
        (405, True): (100, "127.0.0.1"),
        (400, True): (100, "127.0.0.1"),
    }


@pytest.mark.parametrize(
    "settings", [{}, {"callback_path": "/cb"}, {"basic_auth": "a:b"}, {"forward_url": "http://127.0.0.1:1"}]
)
def test_what_a_query_holds_is_in_no_log_line_no_reason_and_no_metric(
    tmp_path: Path, keep: Callable[[Process], Process], settings: dict[str, str]
) -> None:
    receiver = Receiver(tmp_path, NOWHERE, log_level="debug", **settings)
    keep(receiver)
    said = b""
    foreign = BODY.replace(b"callbackUserOfflineCommand", b"callbackBeforeSendSingleMsgCommand")
    for query in (
        *("token=t0k", "token=t0k/callbackUserOfflineCommand", "token=t0k?command=callbackUserOfflineCommand"),
        *("command=t0k", "contenttype=t0k", "command=callbackUserOfflineCommand&contenttype=json&token=t0k"),
        *("t0k=" + "x" * 40_000, "token=t0k/callbackBeforeSendSingleMsgCommand", "?t0k", "t0k#t0k", "\xfft0k"),
    ):
        said += raw(receiver, f"GET /?{query} HTTP/1.1\r\nHost: x\r\n".encode() + CLOSE + b"\r\n")
        for path in ("/cb", "/cb/callbackUserOfflineCommand", "http://t0k@host/cb"):
            for body in (BODY, b"{}", foreign):
                head = f"POST {path}?{query} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n".encode()
                said += raw(receiver, head + CLOSE + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    with urllib.request.urlopen(f"http://127.0.0.1:{receiver.admin_port}/metrics") as page:
        said += page.read()
    said += json.dumps(receiver.readiness()[1]).encode()
    receiver.post("/", {"operationID": "the-last"}, b"{}")
    wait_until(lambda: "operation_id=the-last" in receiver.text())
    assert "t0k" not in receiver.text() + said.decode()


def test_what_an_old_openim_sends_of_nobody_alarms_nobody(tmp_path: Path, keep: Callable[[Process], Process]) -> None:
    receiver = Receiver(tmp_path, NOWHERE)
    keep(receiver)
    (sample,) = (each for each in load_samples("refused") if each["name"] == "v2-offline-of-nobody")
    assert receiver.post(sample["target"], sample["headers"], sample["body"])[0] == 400
    assert receiver.post("/", {"Content-Type": "application/json"}, b"{}")[0] == 400
    wait_until(lambda: "refused POST" in receiver.text())
    assert receiver.text().count("refused POST") == 1
    assert "nobody" not in receiver.text()
    labels = 'command="callbackUserOfflineCommand",outcome="refused",shape="body",status="400"'
    counted = f"presence_callbacks_total{{{labels}}} 1.0"
    with urllib.request.urlopen(f"http://127.0.0.1:{receiver.admin_port}/metrics") as page:
        assert counted in page.read().decode()


def test_a_port_in_use_stops_the_start_with_one_line(edge: Receiver, tmp_path: Path) -> None:
    import os
    import subprocess
    import sys

    result = subprocess.run(
        [sys.executable, "-m", "receiver"],
        env={**os.environ, "PRESENCE_HOST": "127.0.0.1", "PRESENCE_PORT": str(edge.port)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert result.returncode == 1
    assert "PRESENCE_PORT: cannot listen on" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("variable", ["HOST", "ADMIN_HOST"])
def test_a_host_on_which_nothing_can_listen_is_named_itself(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def has_no_such_name(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    port = variable.replace("HOST", "PORT")
    with pytest.raises(SettingsError, match=f"^PRESENCE_{variable}: cannot listen on 203.0.113.7:10006: Cannot assign"):
        bind("203.0.113.7", 10006, port)
    monkeypatch.setattr(socket, "getaddrinfo", has_no_such_name)
    with pytest.raises(SettingsError, match=f"^PRESENCE_{variable}: cannot listen on typo:10006: Name or service not"):
        bind("typo", 10006, port)
