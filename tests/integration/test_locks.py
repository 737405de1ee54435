"""Locks on a real receiver: networks, credentials, HTTPS."""

import asyncio
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from support import Hasty, Process, Receiver, wait_until

NOWHERE = "redis://127.0.0.1:1/0"
BODY = b'{"userID":"u","callbackCommand":"callbackUserOfflineCommand","seq":1,"operationID":"op"}'
JSON = {"Content-Type": "application/json"}

Keep = Callable[[Process], Process]


def test_credentials_are_asked_for_in_http_s_own_way(tmp_path: Path, keep: Keep) -> None:
    receiver = Receiver(tmp_path, NOWHERE, basic_auth="openim:geheim")
    keep(receiver)
    with socket.create_connection(("127.0.0.1", receiver.port), 10) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        while piece := connection.recv(4096):  # it is not kept
            answer += piece
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"\r\nWWW-Authenticate: Basic " in answer
    assert b'"errCode":401' in answer
    assert receiver.post("/", {**JSON, "Authorization": "Basic b3BlbmltOmdlaGVpbQ=="}, BODY)[0] == 200
    assert "geheim" not in receiver.text()


def test_addresses_beyond_the_networks_are_kept_out_and_a_trusted_proxy_may_speak_for_them(
    tmp_path: Path, keep: Keep
) -> None:
    receiver = Receiver(tmp_path, NOWHERE, allowed_networks="192.0.2.0/24", trusted_proxies="127.0.0.1")
    keep(receiver)
    assert receiver.post("/", JSON, BODY)[0] == 403
    assert receiver.post("/", {**JSON, "X-Forwarded-For": "192.0.2.1, 198.51.100.1"}, BODY)[0] == 403
    assert receiver.post("/", {**JSON, "X-Forwarded-For": "198.51.100.1, 192.0.2.1:51008"}, BODY)[0] == 200
    assert receiver.readiness()[1]["journal_events"] == 1
    receiver.stop()
    (segment,) = (tmp_path / "journal").glob("*/*.log")
    assert b'"192.0.2.1"' in segment.read_bytes()  # the peer of the event, by which gateways are told apart


def test_what_is_checked_first_is_answered_first(tmp_path: Path, keep: Keep) -> None:
    receiver = Receiver(tmp_path, NOWHERE, basic_auth="a:b", callback_path="/geheim", max_body_bytes="256")
    keep(receiver)
    right = {"Authorization": "Basic YTpi"}
    large = b"{" + b" " * 300
    assert receiver.post("/", {}, large, "GET")[0] == 401
    assert receiver.post("/", right, large, "PUT")[0] == 405
    assert receiver.post("/", right, large)[0] == 404
    assert receiver.post("/geheim", right, large)[0] == 413
    assert receiver.post("/geheim", right, b"{")[0] == 415
    assert receiver.post("/geheim?command=x", {**right, **JSON}, b"{")[0] == 400
    assert "geheim" not in receiver.text()


@pytest.mark.parametrize("settings", [{}, {"processes": "2"}])
def test_a_receiver_that_anyone_can_reach_says_so_once(tmp_path: Path, keep: Keep, settings: dict[str, str]) -> None:
    receiver = Receiver(tmp_path, NOWHERE, host="0.0.0.0", **settings)
    keep(receiver)
    wait_until(lambda: receiver.text().count("receiving on") == int(settings.get("processes", "1")))
    assert receiver.text().count("anyone who reaches 0.0.0.0 can send callbacks") == 1


def write(pair: trustme.LeafCert, certificate: Path, key: Path) -> None:
    pair.private_key_pem.write_to_path(key)
    certificate.write_bytes(b"".join(pem.bytes() for pem in pair.cert_chain_pems))


def served(receiver: Receiver, context: ssl.SSLContext) -> bytes:
    """The certificate that a new connection gets."""
    with (
        socket.create_connection(("127.0.0.1", receiver.port), 10) as connection,
        context.wrap_socket(connection, server_hostname="presence.test") as secure,
    ):
        return secure.getpeercert(True) or b""


def test_https_is_served_and_a_renewed_certificate_needs_no_restart(tmp_path: Path, keep: Keep) -> None:
    root = trustme.CA()
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    write(root.issue_cert("presence.test"), certificate, key)
    settings = {"tls_cert": str(certificate), "tls_key": str(key), "basic_auth": "openim:geheïm"}
    receiver = Hasty(tmp_path, NOWHERE, {"http.tls.LOOK_SECONDS": 0.1}, **settings)
    keep(receiver)
    context = ssl.create_default_context()
    root.configure_trust(context)
    first = served(receiver, context)

    url = f"https://openim:gehe%C3%AFm@localhost:{receiver.port}/callbackExample"
    root.cert_pem.write_to_path(tmp_path / "root.pem")
    write(root.issue_cert("localhost"), certificate, key)
    wait_until(lambda: served_to_anyone(receiver) != first, what="the new certificate")
    sent = send(tmp_path, "--event", "online", "--url", url, SSL_CERT_FILE=str(tmp_path / "root.pem"))
    assert "1 of 1 accepted" in sent.stdout, sent
    assert "gehe" not in sent.stdout + sent.stderr
    by_default = send(tmp_path, "--event", "online", **receiver.environment)
    assert "1 of 1 accepted" in by_default.stdout, by_default
    assert "gehe" not in by_default.stdout + by_default.stderr

    second = served_to_anyone(receiver)
    key.write_text("not a key")
    wait_until(lambda: "cannot be used, the old one stays: PRESENCE_TLS_KEY" in receiver.text())
    assert served_to_anyone(receiver) == second
    assert receiver.popen.poll() is None


@pytest.mark.parametrize("tls", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_certificate_that_is_renewed_with_a_key_of_another_kind_is_served(
    tmp_path: Path, keep: Keep, tls: ssl.TLSVersion
) -> None:
    root = trustme.CA()
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    context = ssl.create_default_context()
    context.minimum_version = context.maximum_version = tls
    root.configure_trust(context)
    kinds = [trustme.KeyType.ECDSA, trustme.KeyType.RSA, trustme.KeyType.ECDSA]
    pairs = [root.issue_cert("presence.test", key_type=kind) for kind in kinds]
    write(pairs[0], certificate, key)
    receiver = Hasty(tmp_path, NOWHERE, {"http.tls.LOOK_SECONDS": 0.1}, tls_cert=str(certificate), tls_key=str(key))
    keep(receiver)
    kept = context.wrap_socket(
        socket.create_connection(("127.0.0.1", receiver.port), 10), server_hostname="presence.test"
    )
    for pair in pairs:
        write(pair, certificate, key)
        expected = ssl.PEM_cert_to_DER_cert(pair.cert_chain_pems[0].bytes().decode())
        wait_until(lambda expected=expected: served(receiver, context) == expected, 5, "the renewed certificate")
    with kept:  # what was agreed on before goes on
        kept.sendall(b"POST / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert kept.recv(100).startswith(b"HTTP/1.1 415 ")


def served_to_anyone(receiver: Receiver) -> bytes:
    pem = ssl.get_server_certificate(("127.0.0.1", receiver.port), timeout=10)
    return ssl.PEM_cert_to_DER_cert(pem)


def send(directory: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", "from shared.cli import main; main()", "send", *arguments]
    return subprocess.run(
        command, env=environment, cwd=directory, capture_output=True, text=True, timeout=20, check=False
    )


def test_peers_that_speak_no_tls_are_cut_off(tmp_path: Path, keep: Keep) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    write(trustme.CA().issue_cert("presence.test"), certificate, key)
    limits = {"http.handshake.HANDSHAKE_SECONDS": 0.5}
    receiver = Hasty(tmp_path, NOWHERE, limits, tls_cert=str(certificate), tls_key=str(key))
    keep(receiver)
    silent = socket.create_connection(("127.0.0.1", receiver.port), 20)
    with socket.create_connection(("127.0.0.1", receiver.port), 20) as plain:
        plain.sendall(b"POST / HTTP/1.1\r\n\r\n")
        assert b"HTTP" not in plain.recv(4096)
    with silent:
        assert silent.recv(1) == b""
    assert served_to_anyone(receiver)
    assert "Traceback" not in receiver.text()
    wait_until(lambda: "from 127.0.0.1: 400 this is not TLS, which is spoken here. URL: must begin" in receiver.text())
    assert [(each["count"], each["probe"]) for each in receiver.readiness()[1]["refused"]] == [(1, False)]


def test_a_sender_that_does_not_trust_the_certificate_is_named(tmp_path: Path, keep: Keep) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    write(trustme.CA().issue_cert("presence.test"), certificate, key)
    receiver = Receiver(tmp_path, NOWHERE, tls_cert=str(certificate), tls_key=str(key))
    keep(receiver)
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        strict = ssl.create_default_context()  # which knows nothing of that root
        strict.maximum_version = version
        with pytest.raises(ssl.SSLCertVerificationError):
            served(receiver, strict)
    wait_until(lambda: receiver.readiness()[1]["refused"])
    (refused,) = wait_until(lambda: [each for each in receiver.readiness()[1]["refused"] if each["count"] == 2])
    assert (refused["reason"], refused["probe"]) == ("the sender broke off the TLS handshake", False)
    assert "must be trusted on the sender's machine" in refused["detail"]
    assert "unknown ca" in refused["detail"]


def test_over_https_too_an_answer_is_followed_by_the_end_at_once(tmp_path: Path, keep: Keep) -> None:
    root = trustme.CA()
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    write(root.issue_cert("localhost"), certificate, key)
    receiver = Receiver(tmp_path, NOWHERE, tls_cert=str(certificate), tls_key=str(key))
    keep(receiver)
    context = ssl.create_default_context()
    root.configure_trust(context)

    async def ask() -> bytes:
        reader, writer = await asyncio.open_connection("localhost", receiver.port, ssl=context)
        head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
        writer.write(head + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY)
        answer = await reader.read()
        writer.close()
        return answer

    async def ask_often() -> list[bytes]:
        async with asyncio.timeout(5):
            return await asyncio.gather(*(ask() for _ in range(40)))

    assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in asyncio.run(ask_often()))


@pytest.mark.parametrize(
    ("certificate", "key", "says"),
    [
        ("absent.pem", "key.pem", "PRESENCE_TLS_CERT: cannot read"),
        ("cert.pem", "absent.pem", "PRESENCE_TLS_KEY: cannot read"),
        ("key.pem", "key.pem", "PRESENCE_TLS_CERT: .*no certificate"),
        ("cert.pem", "cert.pem", "PRESENCE_TLS_KEY: .*no private key"),
        ("cert.pem", "other.pem", "PRESENCE_TLS_KEY: .*is not the key of"),
        ("cert.pem", "encrypted.pem", "PRESENCE_TLS_KEY: .*encrypted"),
    ],
)
def test_a_pair_that_cannot_serve_names_its_variable(tmp_path: Path, certificate: str, key: str, says: str) -> None:
    from receiver.http import tls
    from shared.errors import SettingsError

    root = trustme.CA()
    write(root.issue_cert("a.test"), tmp_path / "cert.pem", tmp_path / "key.pem")
    write(root.issue_cert("b.test"), tmp_path / "ignored.pem", tmp_path / "other.pem")
    (tmp_path / "encrypted.pem").write_text(encrypted((tmp_path / "key.pem").read_bytes()))
    with pytest.raises(SettingsError, match=f"^{says}"):
        tls.make_context(tmp_path / certificate, tmp_path / key)


def encrypted(key: bytes) -> str:
    from cryptography.hazmat.primitives import serialization as form

    pem = form.load_pem_private_key(key, None).private_bytes(
        form.Encoding.PEM, form.PrivateFormat.PKCS8, form.BestAvailableEncryption(b"geheim")
    )
    return pem.decode()
