"""`presence doctor` with real servers, receivers and workers: well, away, frozen and half shut."""

import fcntl
import json
import shlex
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any
from unittest.mock import patch

import pytest
import recipes
import trustme
from click.testing import CliRunner
from click.testing import Result as Ran
from redis import Redis
from support import Process, Receiver, Server, Worker, free_port, on_one_server, wait_until
from topology import ClusterServers, Watched

from shared.cli import cli
from shared.doctor import openim_config
from shared.doctor.probes import examination, servers
from shared.doctor.probes import journal as journals
from shared.doctor.probes import openim as openim_probe
from shared.doctor.probes import receiver as receivers
from shared.settings import Settings

Keep = Callable[[Process], Process]
Run = Callable[..., Ran]
NOWHERE = "redis://127.0.0.1:1/0"
EVENT = b'{"userID":"alice","callbackCommand":"callbackUserOnlineCommand","seq":1,"operationID":"op"}'
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def run(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the doctor. No receiver runs, unless the test names its ports."""
    for module in (examination, receivers):
        monkeypatch.setattr(module, "BETWEEN_SECONDS", 0.01)
    nobody = str(free_port())

    def run_(*arguments: str, **settings: str) -> Ran:
        given = {"redis_url": server.url, "host": "127.0.0.1", "port": nobody, "admin_port": "0"}
        given |= {"journal_dir": str(tmp_path / "journal"), **settings}
        environment = {f"PRESENCE_{name.upper()}": value for name, value in given.items()}
        return CliRunner().invoke(cli, ["doctor", *arguments], env=environment)

    return run_


def ports(receiver: Receiver) -> dict[str, str]:
    return {"port": str(receiver.port), "admin_port": str(receiver.admin_port)}


def findings(ran: Ran) -> dict[str, str]:
    """What each finding saw, by code."""
    return {each["code"]: each["seen"] for each in json.loads(ran.stdout)["findings"]}


def unseen(ran: Ran) -> dict[str, str]:
    """Why something was not checked."""
    return {each["what"]: each["because"] for each in json.loads(ran.stdout)["checks"] if each["state"] != "checked"}


@pytest.fixture
def lasting(tmp_path: Path, keep: Keep) -> Server:
    """A server with an append-only file; the tests' shared one has none."""
    server = Server(tmp_path / "server")
    keep(server)
    return server


@on_one_server
def test_nothing_is_found_where_all_is_well(run: Run, lasting: Server, tmp_path: Path, keep: Keep) -> None:
    receiver, worker = Receiver(tmp_path, lasting.url), Worker(tmp_path, lasting.url)
    keep(receiver)
    keep(worker)
    assert receiver.post("/", JSON, EVENT)[0] == 200
    wait_until(lambda: lasting.client.exists("presence:alice") and lasting.client.scard("rq:workers:presence"))
    keys = set(lasting.client.keys())
    ran = run("--json", "--fail-on", "note", redis_url=lasting.url, **ports(receiver))
    assert (ran.exit_code, findings(ran)) == (0, {}), ran.output
    assert set(unseen(ran)) == {
        *("OpenIM's gateways", "OpenIM's configuration", "OpenIM's API", "leases", "certificate")
    }
    assert set(lasting.client.keys()) <= keys | {b"presence-sweep", b"presence-sweeper"}  # a worker's
    assert not list((tmp_path / "journal").glob("doctor-*"))
    text = run(redis_url=lasting.url, **ports(receiver)).output
    assert text.startswith("0 errors, 0 warnings, 0 notes")
    assert "not used: leases, because PRESENCE_ONLINE_LEASE_SECONDS is 0" in text


@on_one_server
def test_each_finding_says_why_it_matters_and_what_mends_it(run: Run, server: Server) -> None:
    ran = run("--fail-on", "warning", online_lease_seconds="600")
    assert ran.exit_code == 1
    assert "error P060: PRESENCE_ONLINE_LEASE_SECONDS is 600" in ran.output
    assert "  mend: Set PRESENCE_ONLINE_LEASE_SECONDS to 1800" in ran.output
    assert {"P050", "P052", "P014", "P060"} == set(findings(run("--json", online_lease_seconds="600")))


@on_one_server
def test_a_setting_that_stops_the_start_is_a_finding(run: Run) -> None:
    ran = run("--json", port="geheim")
    assert (ran.exit_code, list(findings(ran))) == (1, ["P001"])
    assert "PRESENCE_PORT" in findings(ran)["P001"]


@on_one_server
def test_severities_decide_about_the_exit_code(run: Run, lasting: Server, tmp_path: Path, keep: Keep) -> None:
    receiver, worker = Receiver(tmp_path, lasting.url), Worker(tmp_path, lasting.url)
    keep(receiver)
    keep(worker)
    wait_until(lambda: lasting.client.hlen("presence-receivers") and lasting.client.scard("rq:workers:presence"))
    given = {"redis_url": lasting.url, "retention_seconds": "60", **ports(receiver)}
    assert [run(**given).exit_code, run("--fail-on", "warning", **given).exit_code] == [0, 1]


# Redis


@on_one_server
def test_a_server_that_is_away_or_has_another_password_is_told_apart(run: Run, tmp_path: Path, keep: Keep) -> None:
    away = run("--json", redis_url="redis://u:geheim@127.0.0.1:1/0")
    assert list(findings(away)) == ["P010"]
    assert "redis://127.0.0.1:1/0, does not answer" in findings(away)["P010"]
    locked = Server(tmp_path / "locked", requirepass="richtig")
    keep(locked)
    for url in (locked.url.replace("richtig", "geheim"), locked.url.replace(":richtig@", "")):
        ran = run("--json", redis_url=url)
        assert list(findings(ran)) == ["P011"], ran.output
        assert "geheim" not in ran.output


@on_one_server
def test_what_we_call_is_what_is_asked_for(server: Server, tmp_path: Path, keep: Keep) -> None:
    """Everything that a receiver and a worker call is on the list, and trying the list changes no key."""
    queue = Server(tmp_path / "queue")
    keep(queue)
    server.client.config_resetstat()
    server.client.set("presence:bad", "no hash")
    queue.client.config_resetstat()
    receiver = Receiver(tmp_path, server.url, queue_url=queue.url)
    worker = Worker(tmp_path, server.url, queue_url=queue.url, online_lease_seconds="2", retention_seconds="2")
    keep(receiver)
    keep(worker)
    assert receiver.post("/", JSON, EVENT)[0] == 200
    wait_until(lambda: server.client.xlen("presence-changes") == 2, what="the lease to run out")
    assert receiver.post("/", JSON, EVENT.replace(b"alice", b"bad"))[0] == 200
    wait_until(lambda: queue.client.zcard("rq:scheduled:presence"), what="the bad event to be tried alone")
    receiver.stop()
    worker.stop()
    for role, each in (("queue", queue), ("presence", server)):
        listed = {command.partition(" {")[0].partition(" ")[0].lower() for command in servers.COMMANDS[role]}
        called = {name.removeprefix("cmdstat_").partition("|")[0] for name in each.client.info("commandstats")}
        of_this_test = {"config", "ping", "client", "set", "xlen"} if role == "presence" else {"config", "ping"}
        assert called - listed <= of_this_test | {"client", "multi", "exec"}, role
        before = {key: each.client.dump(key) for key in each.client.scan_iter()}
        facts = servers.ask(each.url, ("queue", "presence"), Settings())
        assert (facts.error, facts.denied) == ("", {})
        assert {key: each.client.dump(key) for key in each.client.scan_iter()} == before


def test_a_user_with_the_documented_rights_lacks_none_and_another_is_told_which(server: Server) -> None:
    before = len(server.client.acl_list())
    lines = [shlex.split(line)[1:] for line in recipes.text("users.sh").splitlines() if "SETUSER" in line]
    for words in lines:
        server.client.execute_command(*words)
    server.client.execute_command(
        "ACL", "SETUSER", "less", "on", ">secret", "~*", "+@all", "-blmove", "-multi", "-config"
    )
    try:
        for user, role in (
            ("presence-queue", "queue"),
            ("presence-worker", "presence"),
            ("presence-cluster", "presence"),
        ):
            facts = servers.ask(server.url.replace("//", f"//{user}:secret@"), (role,), Settings())
            assert (facts.error, facts.denied) == ("", {}), user
        size = server.client.dbsize()
        facts = servers.ask(server.url.replace("//", "//less:secret@"), ("queue",), Settings())
        assert (set(facts.denied), facts.config) == ({"BLMOVE", "MULTI"}, None)
        assert server.client.dbsize() == size
        server.client.execute_command("ACL", "SETUSER", "less", "resetkeys", "~other:*", "+multi", "-info")
        denied = servers.ask(server.url.replace("//", "//less:secret@"), ("queue",), Settings()).denied
        assert {"RPUSH", "HSET", "INFO"} <= set(denied)
    finally:
        for user in ("less", *(words[2] for words in lines)):
            server.client.acl_deluser(user)
    assert len(server.client.acl_list()) == before


@on_one_server
def test_a_server_that_may_lose_things_is_named(run: Run, tmp_path: Path, keep: Keep) -> None:
    server = Server(tmp_path / "server", appendonly="no", maxmemory_policy="allkeys-lru", bind="127.0.0.1 -::1")
    keep(server)
    assert {"P013", "P014"} <= set(findings(run("--json", redis_url=server.url)))
    server.client.config_set("maxmemory", "100mb")
    assert {"P012", "P014"} <= set(findings(run("--json", redis_url=server.url)))
    server.client.replicaof("127.0.0.1", "1")
    assert "P017" in findings(run("--json", redis_url=server.url))


@on_one_server
def test_the_protocol_error_of_redis_7_0_0_is_named(run: Run) -> None:
    """This server answers as 7.0.0 does when it cannot save: refusals of writes end with an extra empty line."""

    class Answers(StreamRequestHandler):
        def handle(self) -> None:
            while head := self.rfile.readline():
                words = []
                for _ in range(int(head[1:])):
                    size = int(self.rfile.readline()[1:])
                    words.append(self.rfile.read(size + 2)[:-2].upper())
                self.wfile.write(self.answer(words[0]))

        def answer(self, command: bytes) -> bytes:
            if command == b"INFO":
                info = b"redis_version:7.0.0\r\nrole:master\r\nrun_id:x\r\nserver_time_usec:%d" % (time.time() * 1e6)
                return b"$%d\r\n%s\r\n" % (len(info), info)
            if command == b"CONFIG":
                return b"*0\r\n"
            return b"-MISCONF it cannot save\r\n\r\n" if command in (b"DEL", b"HSET") else b"+OK\r\n"

    with ThreadingTCPServer(("127.0.0.1", 0), Answers) as broken:
        threading.Thread(target=broken.serve_forever, daemon=True).start()
        found = findings(run("--json", redis_url=f"redis://127.0.0.1:{broken.server_address[1]}/0"))
        broken.shutdown()
    assert "is Redis 7.0.0 and breaks the protocol" in found["P016"]


# time


@on_one_server
def test_it_ends_in_time_whatever_hangs(run: Run, lasting: Server, tmp_path: Path, keep: Keep) -> None:
    receiver = Receiver(tmp_path, lasting.url)
    keep(receiver)
    for frozen in (lasting, receiver):
        frozen.signal(signal.SIGSTOP)
    hung = threading.Event()
    started = time.monotonic()
    with patch.object(journals, "look_at", lambda path: hung.wait(60)):
        ran = run("--json", redis_url=lasting.url, **ports(receiver))
    took = time.monotonic() - started
    hung.set()
    assert took < 10
    assert set(findings(ran)) == {"P010", "P048", "P090"}, ran.output
    assert findings(ran)["P090"] == "the probe of journal gave no answer: no result within 5 s"
    assert unseen(ran)["journal"] == "no result within 5 s"


@on_one_server
def test_a_defect_of_one_probe_hides_nothing_of_the_others(run: Run) -> None:
    with patch.object(examination, "_snapshots", side_effect=KeyError("x")):
        ran = run("--json")
    assert set(findings(ran)) == {"P090", "P010"}
    assert "queue and workers gave no answer: KeyError" in findings(ran)["P090"]


# the journal


@on_one_server
def test_the_journals_directory_is_tried(run: Run, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    assert "does not exist" in unseen(run("--json"))["journal"]
    (journal / "events-1").mkdir(parents=True)
    (journal / "events-1" / "00000000.log").write_bytes(EVENT)
    (journal / "events-1-00000001.log.damaged").touch()
    ran = run("--json")
    assert f"{len(EVENT)} bytes in {journal}" in findings(ran)["P038"]
    assert "events-1-00000001.log.damaged" in findings(ran)["P032"]
    assert sorted(path.name for path in journal.iterdir()) == ["events-1", "events-1-00000001.log.damaged"]
    file = tmp_path / "file"
    file.touch()
    assert "Not a directory" in findings(run("--json", journal_dir=str(file)))["P030"]


@on_one_server
@pytest.mark.parametrize(
    ("flock", "words"),
    [
        (lambda *_: None, "two locks on one folder were granted"),
        (lambda *_: (_ for _ in ()).throw(OSError(37, "No locks available")), "No locks available"),
    ],
    ids=["that lock nothing", "that there are none"],
)
def test_locks_of_the_journals_disk_are_tried(run: Run, tmp_path: Path, flock: Any, words: str) -> None:
    (tmp_path / "journal").mkdir()
    assert "P031" not in findings(run("--json"))
    with patch.object(fcntl, "flock", flock):
        assert words in journals.look_at(tmp_path / "journal").lock_trouble


def test_the_kernel_says_what_a_path_is_on() -> None:
    assert journals.file_system(Path("/proc/none/such")) == "proc"
    assert journals.file_system(Path("/none/such")) == journals.file_system(Path("/")) != "proc"


# the receiver


@on_one_server
def test_a_frozen_receiver_and_one_that_has_another_password(
    run: Run, server: Server, tmp_path: Path, keep: Keep
) -> None:
    receiver = Receiver(tmp_path, server.url, basic_auth="openim:geheim")
    keep(receiver)
    wait_until(lambda: receiver.readiness()[0] == 200)
    assert not {"P041", "P042"} & set(findings(run("--json", basic_auth="openim:geheim", **ports(receiver))))
    assert "other credentials" in findings(run("--json", basic_auth="openim:falsch", **ports(receiver)))["P042"]
    receiver.signal(signal.SIGSTOP)
    ran = run("--json", **ports(receiver))
    assert "frozen" in findings(ran)["P048"]
    assert "P041" not in findings(ran)


@on_one_server
def test_a_port_where_nobody_or_another_program_listens(run: Run, server: Server, tmp_path: Path, keep: Keep) -> None:
    receiver = Receiver(tmp_path, server.url)
    keep(receiver)
    wait_until(lambda: receiver.readiness()[0] == 200)
    assert "P041" in findings(run("--json", port=str(free_port()), admin_port=str(receiver.admin_port)))
    with another_program() as port:
        assert "status 501" in findings(run("--json", port=str(port), admin_port=str(receiver.admin_port)))["P042"]
    assert "P042" in findings(run("--json", port=str(server.port), admin_port=str(receiver.admin_port)))


@contextmanager
def another_program() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        yield other.server_port
        other.shutdown()


@on_one_server
@pytest.mark.parametrize(("days", "code"), [(60, None), (5, "P046"), (-1, "P045")])
def test_a_certificate_that_ends(
    run: Run, server: Server, tmp_path: Path, keep: Keep, days: int, code: str | None
) -> None:
    ends = datetime.now(UTC) + timedelta(days=days)
    began = ends - timedelta(days=90)
    issued = trustme.CA().issue_cert("presence.example", not_after=ends, not_before=began)
    files = {"tls_cert": tmp_path / "cert.pem", "tls_key": tmp_path / "key.pem"}
    files["tls_cert"].write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(files["tls_key"])
    tls = {name: str(path) for name, path in files.items()}
    receiver = Receiver(tmp_path, server.url, **tls)
    keep(receiver)
    ran = run("--json", **tls, **ports(receiver))
    assert {"P041", "P042", "P045", "P046"} & set(findings(ran)) == ({code} if code else set())


@on_one_server
def test_answer_times_are_read_from_the_running_receiver(server: Server, tmp_path: Path, keep: Keep) -> None:
    receiver = Receiver(tmp_path, server.url)
    keep(receiver)
    settings = Settings(port=receiver.port, admin_port=receiver.admin_port, host="127.0.0.1")
    assert receivers.ask(settings).answers is None
    for _ in range(3):
        assert receiver.post("/", JSON, EVENT)[0] == 200
    answers = receivers.ask(settings).answers
    assert answers is not None
    assert 0 < answers.mean_seconds < 1
    assert (answers.busy, answers.rate) == (0, 0)


@on_one_server
def test_a_key_of_a_wrong_type_and_what_failed_are_said_as_status_says_it(run: Run, redis: Redis) -> None:
    redis.set("presence-stats", "in the way")
    redis.zadd("rq:failed:presence", {"one": 1})
    found = findings(run("--json"))
    assert "presence-stats" in found["P022"]
    assert "presence failed list" in found["P054"]


# OpenIM's files


def openim(directory: Path, url: str, more: str = "") -> Path:
    """A directory as OpenIM 3.8.3's."""
    names = ("afterUserOnline", "afterUserOffline", "afterUserKickOff")
    sections = "".join(f"{name}:\n  enable: true\n  timeout: 5\n" for name in names)
    (directory / "config").mkdir(exist_ok=True)
    (directory / "config" / "webhooks.yml").write_text(f"url: {url}\n{sections}{more}")
    return directory / "config"


def of_openim(ran: Ran) -> set[str]:
    return {code for code in findings(ran) if code[:3] in ("P07", "P08")}


@on_one_server
def test_openims_files_are_held_against_the_running_receiver(
    run: Run, server: Server, tmp_path: Path, keep: Keep
) -> None:
    receiver = Receiver(tmp_path, server.url, basic_auth="openim:ge/heim", callback_path="/s3cret")
    keep(receiver)
    given = {"basic_auth": "openim:ge/heim", "callback_path": "/s3cret", **ports(receiver)}

    def asked(url: str, **others: str) -> set[str]:
        return of_openim(run("--json", "--openim-config", str(openim(tmp_path, url)), **(given | others)))

    place = f"127.0.0.1:{receiver.port}/s3cret/callbackExample"
    assert asked(f"http://openim:ge%2Fheim@{place}") == {"P081"}
    assert asked(f"http://openim:ge%2Fheim@{place}/") == {"P081"}
    assert asked(f"http://openim:falsch@{place}") == {"P076", "P081"}
    assert asked(f"http://openim:falsch@{place}", basic_auth="") == {"P076", "P081"}
    assert asked(f"http://openim:ge%2Fheim@{place}".replace("s3cret", "other")) == {"P077", "P081"}
    assert asked(f"http://openim:ge%2Fheim@127.0.0.1:{free_port()}/s3cret") == {"P075", "P081"}
    assert asked(f"https://openim:ge%2Fheim@{place}") == {"P078", "P081"}
    assert not list((tmp_path / "journal").glob("*/*.log")) or receiver.readiness()[1]["journal_events"] == 0


@on_one_server
def test_openims_release_and_compose_file_are_found_beside_its_files(run: Run, tmp_path: Path) -> None:
    folder = openim(tmp_path, "http://127.0.0.1:1/callbackExample")
    (tmp_path / "version").mkdir()
    (tmp_path / "version" / "version").write_text("v3.8.1\n")
    (tmp_path / "docker-compose.yml").write_text("services: {im: {image: 'openim/openim-server:v3.8.1'}}")
    for path in (folder, tmp_path, folder / "webhooks.yml"):
        assert {"P080", "P086"} <= of_openim(run("--json", "--openim-config", str(path))), path


@on_one_server
def test_what_nobody_thought_of_in_openims_files_hides_nothing_else(run: Run, tmp_path: Path) -> None:
    def fails(*_: object) -> None:
        raise ValueError("nobody thought of it")

    folder = openim(tmp_path, "http://127.0.0.1:1/callbackExample")
    with patch.object(openim_config, "_of_config", fails):
        ran = run("--json", "--openim-config", str(folder))
    assert "nobody thought of it" in findings(ran)["P090"]


@on_one_server
def test_an_address_that_says_nothing_and_a_directory_that_has_nothing(run: Run, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        folder = openim(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}/callbackExample")
        started = time.monotonic()
        ran = run("--json", "--openim-config", str(folder))
        assert time.monotonic() - started < 8
    assert of_openim(ran) == {"P081"}
    assert "nothing within 2 s" in unseen(ran)["whether OpenIM reaches the receiver"]
    look_up, hung = socket.getaddrinfo, threading.Event()

    def no_word(host: str, *arguments: Any, **options: Any) -> Any:
        return hung.wait(60) if host == "openim.example" else look_up(host, *arguments, **options)

    with patch.object(socket, "getaddrinfo", no_word), patch.object(openim_probe, "REACH_SECONDS", 0.5):
        ran = run(
            "--json", "--openim-config", str(openim(tmp_path, "http://openim.example/x")), callback_path="/s3cret"
        )
    hung.set()
    assert of_openim(ran) == {"P077"}
    assert "no result within 0.5 s" in unseen(ran)["whether OpenIM reaches the receiver"]
    (tmp_path / "empty").mkdir()
    assert of_openim(run("--json", "--openim-config", str(tmp_path / "empty"))) == {"P070"}
    assert run("--openim-config", str(tmp_path / "none")).exit_code == 2
    assert "names no directory" in unseen(run("--json"))["OpenIM's configuration"]


# several servers


@on_one_server
def test_a_cluster_and_sentinels_are_asked_for_their_replicas(run: Run, tmp_path: Path, keep: Keep) -> None:
    queue = Server(tmp_path / "queue")
    keep(queue)
    cluster = ClusterServers(tmp_path / "cluster")
    try:
        given = {"redis_url": cluster.url, "queue_url": queue.url}
        assert not {"P010", "P018", "P020", "P024"} & set(findings(run("--json", **given)))
        cluster.replicas[0].kill()
        wait_until(lambda: "P024" in findings(run("--json", **given)), what="the primary to miss its replica")
    finally:
        cluster.kill()
    watched = Watched(tmp_path / "watched")
    try:
        ran = run("--json", redis_url=watched.url)
        assert not {"P010", "P018", "P020", "P024"} & set(findings(ran))
        assert "geheim" not in ran.output
    finally:
        watched.kill()
