"""`presence up` as a newcomer runs it, and the commands beside it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis
from support import PRESENCE, ROOT, Process, Receiver, Server, children, free_port, gone, presence, wait_until

from shared.cli import embedded
from shared.cli.service import Service
from shared.cli.up import start_server
from shared.queue import open_queue
from shared.settings import Settings


class Up(Process):
    def __init__(self, directory: Path, program: str = PRESENCE, **environment: str) -> None:
        self.port = free_port()
        self.ports = {"PRESENCE_PORT": str(self.port), "PRESENCE_ADMIN_PORT": str(free_port())}
        super().__init__([sys.executable, program, "up"], self.ports | environment, directory, "up")

    def wait(self) -> None:
        before = self.text().count("presence is up")
        wait_until(lambda: self.text().count("presence is up") > before or self.popen.poll() is not None, 30)
        assert self.popen.poll() is None, self.text()

    @property
    def redis_url(self) -> str:
        return re.findall(r"redis://[^\s]+:\d+/0", self.text())[-1]

    def children(self) -> list[int]:
        return sorted(children(self))

    def run(self, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        return presence(*arguments, PRESENCE_REDIS_URL=self.redis_url, **environment)

    def send(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return self.run("send", "--url", f"http://127.0.0.1:{self.port}/callbackExample", *arguments)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    up = Up(tmp_path)
    yield up
    up.kill()


def test_one_command_runs_everything_and_leaves_nothing_running(up: Up, tmp_path: Path) -> None:
    up.wait()
    children = up.children()
    assert len(children) == 3
    assert up.send("--user", "alice", "--event", "online").returncode == 0
    wait_until(lambda: "online" in up.run("get", "alice").stdout)

    up.signal(signal.SIGINT)
    assert up.popen.wait(30) == 0
    assert all(gone(pid) for pid in children)
    assert "Traceback" not in up.text()
    assert (tmp_path / "data").is_dir()

    up.start()
    up.wait()
    assert "online" in up.run("get", "alice").stdout


def test_a_server_that_took_the_port_first_is_not_mistaken_for_its_own(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with two `presence up` that start at the same time."""
    ports = iter([server.port, free_port()])
    monkeypatch.setattr(embedded, "free_port", lambda _: next(ports))
    (tmp_path / "data").mkdir()
    services: list[Service] = []
    environment: dict[str, str] = {}
    try:
        start_server(services, tmp_path / "data", environment, threading.Event())
        (own,) = services
        assert own.is_running
        assert environment["PRESENCE_REDIS_URL"] != server.url
        assert Redis.from_url(environment["PRESENCE_REDIS_URL"]).info()["process_id"] == own.process.pid
    finally:
        for service in services:
            service.stop()


def test_other_users_of_the_machine_read_nothing_of_its_data(up: Up, tmp_path: Path) -> None:
    up.wait()
    assert (tmp_path / "data").stat().st_mode & 0o077 == 0


def test_the_readme_shows_what_the_commands_print(up: Up) -> None:
    section = (ROOT / "README.md").read_text().split("## See it work")[1].split("\n## ")[0]
    shown = re.findall(r"\$ \.venv/bin/presence ([a-z]+)(.*)\n((?:(?!\n|```|\.\.\.).*\n)+)", section)
    assert [command for command, _, _ in shown] == ["up", "send", "get"]
    up.wait()
    for command, arguments, lines in shown:
        printed = up.text() if command == "up" else up.run(command, *arguments.split(), **up.ports).stdout
        assert without_figures(lines) in without_figures(printed)
        if command == "send":
            wait_until(lambda: "online" in up.run("get", "alice").stdout)


def without_figures(text: str) -> str:
    """Numbers, times, addresses and ports differ from run to run."""
    return re.sub(r"[\d.:,-]*\d", "#", re.sub(r" \(port \d+ is taken by another program\)", "", text))


def test_a_child_that_dies_is_started_again(up: Up) -> None:
    up.wait()
    before = up.children()
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(up.children()) == 3 and not set(up.children()) & set(before))
    wait_until(lambda: up.send("--user", "bob").returncode == 0)
    wait_until(lambda: "offline" in up.run("get", "bob").stdout)


def test_a_child_that_freezes_is_named_and_replaced(tmp_path: Path, keep: Callable[[Process], Process]) -> None:
    class Impatient(Up):
        def start(self) -> None:
            program = "from shared.cli import main, service; service.PROBE_SECONDS = 1.0; main()"
            self.command = [sys.executable, "-c", program, "up"]
            super().start()

    up = Impatient(tmp_path)
    keep(up)
    up.wait()
    _, *both = before = up.children()
    for pid in both:
        os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: len(found := up.children()) == 3 and set(found) & set(before) == {before[0]})
    for name, pid in zip(("receiver", "worker"), both, strict=True):
        assert f"presence: {name} (pid {pid}) no longer answers and is killed" in up.text()
    wait_until(lambda: up.send("--user", "bob").returncode == 0)
    wait_until(lambda: "offline" in up.run("get", "bob").stdout)


def test_commands_in_its_directory_ask_the_server_that_it_started(up: Up, tmp_path: Path, redis: Redis) -> None:
    def here(*arguments: str, **environment: str) -> str:
        ran = presence(*arguments, cwd=tmp_path, **environment)
        return ran.stdout + ran.stderr

    up.wait()
    assert "Commands run in this directory find it by themselves" in up.text()
    assert "2 of 2 accepted" in here("send", "--user", "alice")
    wait_until(lambda: "offline" in here("get", "alice"))
    assert up.redis_url in here("status")
    assert (tmp_path / "data" / "up.json").stat().st_mode & 0o077 == 0
    assert "nothing known" in here("get", "alice", PRESENCE_REDIS_URL=up.redis_url.replace("/0", "/1"))
    assert "no `presence up` runs" not in here("status")
    assert up.stop(30) == 0
    assert not (tmp_path / "data" / "up.json").exists()
    assert here("status").count("no `presence up` runs in this directory now") == 1
    assert "no `presence up` runs" not in here("status", PRESENCE_REDIS_URL=up.redis_url)


def test_a_data_directory_that_cannot_be_made_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("in the way")
    up = Up(tmp_path)
    assert up.popen.wait(20) == 1
    assert re.fullmatch(r"presence: \S+/data cannot be written: .*\n", up.text())


@pytest.fixture
def with_data(up: Up, tmp_path: Path) -> Path:
    """The append-only files of a `presence up` that knew alice."""
    up.wait()
    Redis.from_url(up.redis_url).hset("presence:alice", mapping={"status": "online", "changed_at": 1})
    up.stop(30)
    return tmp_path / "data" / "appendonlydir"


def test_zeros_at_the_end_of_the_append_only_file_can_be_cut_off_as_it_says(up: Up, with_data: Path) -> None:
    with (with_data / "appendonly.aof.1.incr.aof").open("ab") as file:
        file.write(bytes(4096))  # as after a power cut
    up.start()
    assert up.popen.wait(20) == 1
    assert "its append-only file is damaged" in up.text()
    copy, repair = (line.strip() for line in up.text().splitlines()[-2:])
    subprocess.run(["bash", "-c", f"{copy} && yes | {repair}"], check=True, timeout=30, capture_output=True)
    assert (with_data.parent / "appendonlydir.kept").is_dir()
    up.start()
    up.wait()
    assert "online" in up.run("get", "alice").stdout


def test_append_only_files_without_their_manifest_stop_the_start(up: Up, with_data: Path) -> None:
    (with_data / "appendonly.aof.manifest").unlink()
    up.start()
    assert up.popen.wait(20) == 1
    assert "no manifest that names them: a server would start without users" in up.text()
    assert "Traceback" not in up.text()


def test_children_do_not_outlive_a_killed_parent(up: Up) -> None:
    up.wait()
    children = up.children()
    up.popen.kill()
    wait_until(lambda: all(gone(pid) for pid in children))


def test_two_in_one_directory_are_one_too_many(up: Up, tmp_path: Path) -> None:
    up.wait()
    second = Up(tmp_path)
    assert second.popen.wait(20) == 1
    assert "another `presence up` is running" in second.text()


def test_a_port_in_use_is_said_in_one_line(tmp_path: Path, server: Server) -> None:
    up = Up(tmp_path, PRESENCE_REDIS_URL=server.url, PRESENCE_PORT=str(server.port))
    assert up.popen.wait(20) == 1
    assert "PRESENCE_PORT: cannot listen on" in up.text()
    assert "Traceback" not in up.text()


def test_a_server_of_ones_own_is_used_instead(tmp_path: Path, server: Server) -> None:
    up = Up(tmp_path, PRESENCE_REDIS_URL=server.url)
    try:
        up.wait()
        assert len(up.children()) == 2
        assert up.send("--user", "carol").returncode == 0
        wait_until(lambda: server.client.hget("presence:carol", "status") == b"offline")
    finally:
        up.kill()


@pytest.mark.parametrize("variable", ["PRESENCE_REDIS_URL", "PRESENCE_QUEUE_URL"])
def test_a_server_of_ones_own_that_does_not_answer_is_said(tmp_path: Path, variable: str) -> None:
    url = f"redis://127.0.0.1:{free_port()}/0"
    up = Up(tmp_path, **{variable: url})
    assert up.popen.wait(20) == 1
    assert f"{variable}: {url}: " in up.text()
    assert "presence is up" not in up.text()


def test_the_hint_fits_the_settings(tmp_path: Path, server: Server) -> None:
    elsewhere = server.url.rpartition("/")[0] + "/1"
    queue = {"PRESENCE_REDIS_URL": server.url, "PRESENCE_QUEUE_URL": elsewhere}
    up = Up(tmp_path, PRESENCE_CALLBACK_PATH="/s3cret", PRESENCE_KEY_PREFIX="im", **queue)
    try:
        up.wait()
        assert f"url: http://127.0.0.1:{up.port}/s3cret/callbackExample" in up.text()
        (line,) = (line.strip() for line in up.text().splitlines() if " send --user" in line)
        subprocess.run(["bash", "-c", line], check=True, timeout=30)
        wait_until(lambda: server.client.hget("im:alice", "status") == b"online")
        (line,) = (line.strip() for line in up.text().splitlines() if " get alice" in line)
        assert f"PRESENCE_QUEUE_URL={elsewhere} " in line
        assert "CALLBACK_PATH" not in line
        said = subprocess.run(["bash", "-c", line], check=True, timeout=30, capture_output=True, text=True).stdout
        assert "online" in said
    finally:
        up.kill()


def test_the_hint_of_a_program_beside_the_data_leaves_to_it_what_it_finds_by_itself(
    tmp_path: Path, server: Server, keep: Callable[[Process], Process]
) -> None:
    program = os.path.relpath(PRESENCE, tmp_path)
    up = Up(tmp_path, program, PRESENCE_REDIS_URL=server.url, PRESENCE_KEY_PREFIX="im")
    keep(up)
    up.wait()
    hints = [line.strip() for line in up.text().splitlines() if line.startswith(f"  {program} ")]
    assert [line.split()[1] for line in hints] == ["send", "get", "watch", "status"]
    sending, getting, *_ = hints
    subprocess.run(["bash", "-c", sending], check=True, timeout=30, cwd=tmp_path)
    wait_until(lambda: server.client.hget("im:alice", "status") == b"online")
    said = subprocess.run(["bash", "-c", getting], check=True, timeout=30, capture_output=True, text=True, cwd=tmp_path)
    assert "online" in said.stdout


def test_everywhere_is_both_ipv4_and_ipv6_and_no_proxy_is_asked(tmp_path: Path, server: Server) -> None:
    proxy = f"http://127.0.0.1:{free_port()}"
    everywhere = {"PRESENCE_HOST": "[::]", "PRESENCE_ADMIN_HOST": "::"}
    up = Up(tmp_path, PRESENCE_REDIS_URL=server.url, http_proxy=proxy, ALL_PROXY=proxy, **everywhere)
    try:
        up.wait()
        assert f"takes callbacks at http://HOST:{up.port} from other machines too" in up.text()
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, up.port), 1).close()
            socket.create_connection((host, int(up.environment["PRESENCE_ADMIN_PORT"])), 1).close()
        (line,) = (line.strip() for line in up.text().splitlines() if " send --user" in line)
        subprocess.run(["bash", "-c", line], check=True, timeout=30, env={**os.environ, "http_proxy": proxy})
    finally:
        up.kill()


@pytest.mark.parametrize(("host", "shown"), [("::1", "[::1]"), ("localhost", "localhost")])
def test_commands_go_where_the_receiver_listens(
    tmp_path: Path, server: Server, keep: Callable[[Process], Process], host: str, shown: str
) -> None:
    up = Up(tmp_path, PRESENCE_REDIS_URL=server.url, PRESENCE_HOST=host, PRESENCE_ADMIN_HOST=host)
    keep(up)
    up.wait()
    assert f"takes callbacks at http://{shown}:{up.port} from this machine only" in up.text()
    (line,) = (line.strip() for line in up.text().splitlines() if " send --user" in line)
    subprocess.run(["bash", "-c", line], check=True, timeout=30)
    settings = {name: value for name, value in up.environment.items() if name.startswith("PRESENCE_")}
    assert "here         a receiver on this machine is ready" in presence("status", **settings).stdout


# The commands that read


@pytest.mark.parametrize("command", [["get", "--all"], ["watch", "--since", "0"], ["status"]])
def test_a_terminal_in_gbk_shows_what_it_can(redis: Redis, server: Server, command: list[str]) -> None:
    user = "用户👍"
    redis.hset(f"presence:{user}", mapping={"status": "online", "changed_at": 1, "seq": 1})
    redis.xadd("presence-changes", {"user_id": user, "status": "online", "changed_at": 1})
    environment = {**os.environ, "PRESENCE_REDIS_URL": server.url, "PRESENCE_ADMIN_PORT": "0"}
    environment["PYTHONIOENCODING"] = "gbk"
    process = subprocess.Popen([PRESENCE, *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout
    found = b""
    while b"\\U0001f44d" not in found:
        line = process.stdout.readline()
        assert line, found
        found += line
    process.send_signal(signal.SIGINT)
    process.stdout.close()
    process.wait(20)
    assert "用户".encode("gbk") in found
    assert b"Traceback" not in found


@pytest.fixture
def known(redis: Redis) -> Redis:
    redis.hset(
        "presence:alice",
        mapping={
            "status": "online",
            "seq": "9223372036854775807",
            "changed_at": "1732345678901",
            "updated_at": "1732345678902",
            "command": "callbackAfterUserOnlineCommand",
            "conn_id": "",
            "platform_id": "1",
            "platform": "IOS",
            "operation_id": "op",
            "sessions": "2",
            "platforms": "1,5",
            "p:1": "private",
        },
    )
    return redis


def test_get_for_programs(known: Redis, server: Server) -> None:
    result = presence("get", "alice", "nobody", "--json", PRESENCE_REDIS_URL=server.url)
    alice, nobody = map(json.loads, result.stdout.splitlines())
    assert alice == {
        "user_id": "alice",
        "status": "online",
        "seq": "9223372036854775807",
        "changed_at": 1732345678901,
        "updated_at": 1732345678902,
        "command": "callbackAfterUserOnlineCommand",
        "conn_id": "",
        "platform_id": "1",
        "platform": "IOS",
        "operation_id": "op",
        "sessions": 2,
        "platforms": "1,5",
    }
    assert nobody == {"user_id": "nobody", "status": "unknown"}
    assert result.returncode == 0
    assert "2 sessions (IOS, Web), " in presence("get", "alice", PRESENCE_REDIS_URL=server.url).stdout


def test_get_for_people(known: Redis, server: Server) -> None:
    forged = "x\x1b[2J\nfake online"
    result = presence("get", "alice", forged, PRESENCE_REDIS_URL=server.url)
    first, second = result.stdout.splitlines()
    assert "online" in first
    assert "2024-11-23 07:07:58Z" in first
    assert "2 sessions" in first
    assert "nothing known" in second
    assert "\x1b" not in second


def test_exit_codes() -> None:
    nowhere = f"redis://127.0.0.1:{free_port()}/0"
    result = presence("get", "alice", PRESENCE_REDIS_URL=nowhere)
    assert result.returncode == 1
    assert result.stderr.startswith(f"presence: Redis at {nowhere}")
    assert "Traceback" not in result.stderr
    assert presence("get").returncode == 2
    assert presence("nonsense").returncode == 2
    assert presence("get", "alice", PRESENCE_PORT="x").returncode == 1
    assert presence("send", "--url", f"http://127.0.0.1:{free_port()}/", "--user", "a").returncode == 1
    assert presence("--help").returncode == 0


@pytest.mark.parametrize(
    "url", ["ftp://host", "http://", "http://[::1/x", "http://host:99999/x", "http://host:x/", "http://open..im/x"]
)
def test_send_refuses_an_address_that_leads_nowhere(url: str) -> None:
    refused = presence("send", "--url", url)
    assert refused.returncode == 2
    assert "Error: --url: " in refused.stderr
    assert "Traceback" not in refused.stderr


def test_send_says_why_no_answer_came() -> None:
    port = free_port()
    refused = presence("send", "--url", f"http://127.0.0.1:{port}/", "--user", "a", "--event", "online")
    assert f"no answer: 127.0.0.1:{port}: Connection refused" in refused.stdout
    assert "p50" not in refused.stdout
    with socket.create_server(("127.0.0.1", 0)) as closing:
        threading.Thread(target=_hang_up, args=(closing,), daemon=True).start()
        url = f"http://127.0.0.1:{closing.getsockname()[1]}/"
        closed = presence("send", "--url", url, "--user", "a", "--event", "online")
    assert "no answer: the connection was closed instead" in closed.stdout
    assert closed.returncode == 1


def _hang_up(listener: socket.socket) -> None:
    listener.accept()[0].close()


def test_send_plays_a_login_and_a_logout_or_one_event_with_a_given_seq(receiver: Receiver, redis: Redis) -> None:
    url = f"http://127.0.0.1:{receiver.port}/x"
    assert json.loads(presence("send", "--url", url, "--json").stdout)["accepted"] == 2
    ran = presence("send", "--url", url, "--event", "online", "--seq", str(2**63 - 1), "--json")
    assert json.loads(ran.stdout)["accepted"] == 1
    wait_until(lambda: receiver.readiness()[1]["journal_events"] == 0)
    jobs = open_queue(redis, Settings()).jobs
    seqs = [event[2] for job in jobs for event in job.args[0]]
    assert sorted(seqs)[-1] == 2**63 - 1
    assert len(seqs) == 3


def test_send_plays_every_shape(tmp_path: Path, server: Server) -> None:
    from shared.cli import churn

    receiver = Receiver(tmp_path, server.url)
    try:
        url = f"http://127.0.0.1:{receiver.port}/x"
        forged = presence("send", "--url", url, "--user", "eve\nX-Forged: 1")
        assert (forged.returncode, forged.stderr) == (0, "")
        plays = [(shape, "session") for shape in ("document", "v2", "v3.0", "v3.4", "v3.7", "v3.8")]
        for shape, event in [*plays, ("v3.8", "kickoff")]:
            result = presence("send", "--url", url, "--shape", shape, "--event", event, "--users", "3", "--json")
            report = json.loads(result.stdout)
            expected = {"kickoff": 3, "session": churn.count(3) if shape == "v3.8" else 6}[event]
            assert report["accepted"] == report["sent"] == expected, report
    finally:
        receiver.kill()
