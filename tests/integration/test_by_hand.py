"""What the documents tell people to try with curl works as it stands."""

import re
import subprocess
from pathlib import Path

import pytest
from redis import Redis
from support import ROOT, Receiver, Worker, wait_until

PAGES = [ROOT / "docs" / "connect.md", ROOT / "docs" / "openim-versions.md"]
#: A command, and the answer that the page promises.
SHOWN = re.compile(r"^```sh\n(curl .*?)^```$.*?The answer is `(.*?)`", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_curl_of_the_documents_gets_the_answer_that_they_show(receiver: Receiver, page: Path) -> None:
    shown = SHOWN.findall(page.read_text())
    assert len(shown) == page.read_text().count("```sh\ncurl ") > 0
    for command, answer in shown:
        assert run(command, receiver) == answer
    assert receiver.readiness()[1]["refused"] == []


def test_a_user_comes_and_goes_by_hand(receiver: Receiver, worker: Worker, redis: Redis) -> None:
    ((command, _),) = SHOWN.findall(PAGES[1].read_text())
    for second, step in enumerate(("Online", "Online", "Offline"), 1_700_000_000):
        run(command.replace("Online", step).replace("$(date +%s)", str(second)), receiver)
        expected = [f"{second}000".encode(), step.lower().encode()]
        wait_until(lambda expected=expected: redis.hmget("presence:user123", "seq", "status") == expected)


def run(command: str, receiver: Receiver) -> str:
    command = command.replace("127.0.0.1:10006", f"127.0.0.1:{receiver.port}")
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=20, check=True)
    return done.stdout
