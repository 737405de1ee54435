"""Each program in docs/cookbook.md does what the page says."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import recipes
from recipes import OFF, ON, Gateway
from redis import Redis
from support import Server, on_one_server

from shared.cli import embedded

pytestmark = on_one_server


@pytest.fixture
def three(redis: Redis) -> None:
    """alice is online, bob went offline, nobody was never heard of."""
    gateway = Gateway(redis)
    gateway(ON, "alice", "bob", at=1732345678000)
    gateway(OFF, "bob", at=1732345679000)


PRINTED = {
    "who.py": "True ['alice'] now 2024-11-23T07:07:59+00:00 never\n",
    "phone.py": "alice True\nbob False\nnobody False\n",
    "everybody.py": "1 users are online:\nalice 1732345678000 (1,)\n",
}


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize("name", PRINTED)
def test_who_is_online_and_when_the_others_were(name: str, server: Server, tmp_path: Path) -> None:
    path = recipes.write(tmp_path, name, server.port)
    assert recipes.run(path, "alice", "bob", "nobody") == PRINTED[name]


@pytest.mark.usefixtures("three")
def test_the_same_from_a_shell(server: Server, tmp_path: Path) -> None:
    client = shutil.which("redis-cli") or embedded.find_server().with_name("valkey-cli")
    (tmp_path / "redis-cli").write_text(f'#!/bin/sh\nexec {client} -p {server.port} "$@"\n')
    (tmp_path / "redis-cli").chmod(0o755)
    (tmp_path / "users.txt").write_text("alice\nbob\nnobody\nwith a space\n")
    done = subprocess.run(
        ["bash", "-ec", recipes.text("who.sh")],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.splitlines(), done.stderr) == (["online", "1", "offline", "1732345679000", "1"], "")
