"""When pushed events may leave the journal. The test sets the clock, and what Sentinels and the server say."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from receiver.journal.journal import Journal
from receiver.relay import replay_window as module
from receiver.relay.replay_window import SETTLE_SECONDS, UNCONFIRMED_SECONDS, ReplayWindow


class Scene:
    """One journal with its window; `primary`: what the Sentinels say, `role`: what the server says of itself."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, limit: int = 1 << 20) -> None:
        self.primary, self.role, self.run_id, self.now = "same", "master", "a", 1000.0
        self.journal = Journal(root, limit)
        client: Any = SimpleNamespace(info=lambda section: {"role": self.role})
        self.window = ReplayWindow(self.journal, client, lambda: self.run_id)
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(module, "find_primary", lambda client: self.primary)
        self.window.settle()  # the first answer

    def push(self) -> None:
        self.journal.append(b"x" * 90)  # 100 bytes
        batch = self.journal.next_batch(10)
        assert batch
        self.journal.pushed(batch)
        self.window.add(batch)

    def kept_after(self, seconds: float) -> int:
        self.now += seconds
        self.window.settle()
        return self.journal.kept_events


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(tmp_path, monkeypatch)


def test_it_leaves_once_the_same_run_answers_later(scene: Scene) -> None:
    scene.push()
    assert scene.kept_after(SETTLE_SECONDS - 1) == 1
    assert scene.kept_after(2) == 0
    assert scene.window.reason == ""


def test_it_is_pushed_again_where_another_run_answers(scene: Scene) -> None:
    scene.push()
    scene.run_id = "b"
    assert scene.kept_after(SETTLE_SECONDS + 1) == 0
    assert scene.journal.waiting_events == 1


def test_without_sentinels_it_leaves_when_the_same_run_is_a_primary_for_long(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.push()
    scene.primary = "unknown"
    assert scene.kept_after(SETTLE_SECONDS + 1) == 1
    assert "no Sentinel can be asked" in scene.window.reason
    assert scene.kept_after(UNCONFIRMED_SECONDS) == 0
    assert caplog.text.count("no Sentinel can be asked") == 1
    scene.primary = "same"
    scene.push()
    assert scene.kept_after(SETTLE_SECONDS + 1) == 0
    assert scene.window.reason == ""


@pytest.mark.parametrize(("primary", "role"), [("unknown", "slave"), ("another", "master")])
def test_it_stays_where_the_server_is_not_the_primary(scene: Scene, primary: str, role: str) -> None:
    scene.push()
    scene.primary, scene.role = primary, role
    assert scene.kept_after(10 * UNCONFIRMED_SECONDS) == 1
    assert scene.window.reason


def test_the_server_may_turn_out_to_be_another_while_it_is_asked(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(client: object) -> str:
        scene.run_id = "b"
        return "same"

    scene.push()
    monkeypatch.setattr(module, "find_primary", find)
    assert scene.kept_after(SETTLE_SECONDS + 1) == 0
    assert scene.journal.waiting_events == 1


def test_the_disk_is_bounded_whatever_nobody_can_confirm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("receiver.journal.writer.SEGMENT_BYTES", 100)
    scene = Scene(tmp_path, monkeypatch, limit=1000)
    scene.primary = "another"
    for _ in range(50):
        scene.push()
        scene.kept_after(1)
    on_disk = sum(path.stat().st_size for path in tmp_path.rglob("*.log"))
    assert 900 <= on_disk <= 1100
    assert scene.journal.kept_bytes == on_disk
    assert "are no longer kept" in caplog.text


def test_sentinels_that_hang_are_asked_more_seldom(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    def hang(client: object) -> str:
        nonlocal asked
        asked += 1
        scene.now += 3
        return "unknown"

    monkeypatch.setattr(module, "find_primary", hang)
    scene.push()
    for _ in range(60):
        scene.kept_after(0.5)
    assert asked <= 2
