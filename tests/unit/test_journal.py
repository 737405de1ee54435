"""The journal, on real files."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.journal import journal as module
from receiver.journal.journal import Journal
from receiver.journal.segment import Batch, Segment, from_line, to_line
from shared.errors import Unavailable

PLENTY = 1 << 30


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEGMENT_BYTES", 100)


def payload(number: int) -> bytes:
    return b'{"event":%d}' % number


def drain(journal: Journal, most: int = 1000) -> Iterator[bytes]:
    """What a relay would push, settling it at once."""
    while batch := journal.next_batch(most):
        yield from list(batch.payloads)
        journal.pushed(batch)
        journal.settled(batch)


def files(root: Path) -> list[str]:
    return sorted(path.name for path in root.rglob("*") if path.is_file())


def test_events_come_back_in_their_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path, PLENTY)
    for number in range(2500):
        journal.append(payload(number))
    assert list(drain(journal)) == [payload(number) for number in range(2500)]
    assert (journal.waiting_events, journal.waiting_bytes) == (0, 0)


def test_an_event_is_in_the_file_when_append_returns(tmp_path: Path) -> None:
    journal = Journal(tmp_path, PLENTY)
    journal.append(payload(1))
    (path,) = tmp_path.rglob("*.log")
    assert path.read_bytes() == to_line(payload(1))


@pytest.mark.usefixtures("small_segments")
def test_settled_events_leave_the_disk(tmp_path: Path) -> None:
    journal = Journal(tmp_path, PLENTY)
    for number in range(100):
        journal.append(payload(number))
    assert len(files(tmp_path)) > 10
    assert len(list(drain(journal))) == 100
    assert files(tmp_path) == []
    journal.append(payload(100))
    assert list(drain(journal)) == [payload(100)]


@pytest.mark.usefixtures("small_segments")
def test_pushed_is_not_settled(tmp_path: Path) -> None:
    journal = Journal(tmp_path, PLENTY)
    for number in range(20):
        journal.append(payload(number))
    before = (journal.waiting_events, journal.waiting_bytes)
    batches: list[Batch] = []
    while batch := journal.next_batch(3):
        journal.pushed(batch)
        batches.append(batch)
    assert (journal.waiting_events, journal.waiting_bytes) == (0, 0)
    journal.settled(batches[0])
    again = journal.push_again()
    assert again == 20 - batches[0].lines
    assert (journal.waiting_events, journal.waiting_bytes) < before
    assert list(drain(journal)) == [payload(number) for number in range(batches[0].lines, 20)]


def test_a_batch_is_bounded(tmp_path: Path) -> None:
    journal = Journal(tmp_path, PLENTY)
    for number in range(5):
        journal.append(payload(number))
    batch = journal.next_batch(2)
    assert batch is not None
    assert batch.payloads == [payload(0), payload(1)]


def test_one_event_may_be_larger_than_a_piece(tmp_path: Path) -> None:
    journal = Journal(tmp_path, PLENTY)
    large = b'"' + b"x" * (3 << 20) + b'"'
    journal.append(payload(1))
    journal.append(large)
    journal.append(payload(2))
    assert list(drain(journal)) == [payload(1), large, payload(2)]


def test_the_limit_counts_what_redis_does_not_have(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 3 * len(to_line(payload(1))))
    for number in range(3):
        journal.append(payload(number))
    with pytest.raises(Unavailable, match="PRESENCE_JOURNAL_MAX_BYTES"):
        journal.append(payload(3))
    assert journal.check()
    batch = journal.next_batch(1)
    assert batch is not None
    journal.pushed(batch)
    assert journal.check() == ""
    assert list(drain(journal))[:2] == [payload(1), payload(2)]
    journal.append(payload(4))


def test_two_live_journals_share_nothing(tmp_path: Path) -> None:
    first, second = Journal(tmp_path, PLENTY), Journal(tmp_path, PLENTY)
    first.append(payload(1))
    second.append(payload(2))
    first.adopt_orphans()
    second.adopt_orphans()
    assert list(drain(first)) == [payload(1)]
    assert list(drain(second)) == [payload(2)]


def leave_behind(root: Path, *numbers: int) -> Path:
    """What a killed process leaves: its files, and no lock."""
    journal = Journal(root, PLENTY)
    for number in numbers:
        journal.append(payload(number))
    assert journal._own is not None
    journal._own.release()
    (path,) = journal._own.path.glob("*.log")
    return path


def test_an_orphan_is_adopted_before_newer_events(tmp_path: Path) -> None:
    leave_behind(tmp_path, 1, 2)
    leave_behind(tmp_path, 3)
    journal = Journal(tmp_path, PLENTY)
    journal.append(payload(4))
    journal.adopt_orphans()
    assert journal.waiting_events == 4
    assert list(drain(journal)) == [payload(number) for number in (1, 2, 3, 4)]
    journal.close()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_read_holds_up_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_behind(tmp_path, 1)
    journal = Journal(tmp_path, PLENTY)
    journal.adopt_orphans()
    journal.append(payload(2))
    read = module.read_batch

    def unreadable_at_first(segment: Segment, most: int) -> Batch:
        if segment is journal._segments[0] and not segment.unreadable_until:
            raise OSError(5, "Input/output error")
        return read(segment, most)

    monkeypatch.setattr(module, "read_batch", unreadable_at_first)
    assert list(drain(journal)) == [payload(2)]
    assert (journal.waiting_events, journal.unreadable_files()) == (1, 1)
    journal._segments[0].unreadable_until -= module.UNREADABLE_SECONDS
    assert list(drain(journal)) == [payload(1)]
    assert (journal.waiting_events, journal.unreadable_files()) == (0, 0)


@pytest.mark.parametrize("whose", ["ours", "an orphan's"])
def test_a_file_that_somebody_removed_is_reported_and_holds_up_nothing(
    tmp_path: Path, whose: str, caplog: pytest.LogCaptureFixture
) -> None:
    if whose == "an orphan's":
        leave_behind(tmp_path, 1, 2)
    journal = Journal(tmp_path, PLENTY)
    journal.adopt_orphans()
    if whose == "ours":
        journal.append(payload(1))
        journal.append(payload(2))
    for path in tmp_path.rglob("*.log"):
        path.unlink()
    assert journal.next_batch(10) is None
    assert "2 accepted events with it" in caplog.text
    journal.append(payload(3))
    assert list(tmp_path.rglob("*.log")) != []
    assert list(drain(journal)) == [payload(3)]
    assert (journal.waiting_events, journal.waiting_bytes) == (0, 0)


def test_an_orphan_that_cannot_be_taken_over_holds_up_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [leave_behind(tmp_path, number) for number in (1, 2, 3)]
    measure, broken = module.measure, {paths[1]}

    def fail_once(segment: Segment) -> None:
        if segment.path in broken:
            broken.remove(segment.path)
            raise OSError(5, "Input/output error")
        measure(segment)

    monkeypatch.setattr(module, "measure", fail_once)
    journal = Journal(tmp_path, PLENTY)
    journal.adopt_orphans()
    assert list(drain(journal)) == [payload(1), payload(3)]
    journal.adopt_orphans()
    assert list(drain(journal)) == [payload(2)]


def test_what_somebody_else_put_into_a_folder_stays(tmp_path: Path) -> None:
    (leave_behind(tmp_path, 1).parent / "note.txt").write_text("mine")
    leave_behind(tmp_path, 2)
    for _ in range(2):
        journal = Journal(tmp_path, PLENTY)
        journal.adopt_orphans()
        list(drain(journal))
        journal.close()
    assert files(tmp_path) == ["note.txt"]


def test_half_a_line_at_the_end_was_never_accepted(tmp_path: Path) -> None:
    path = leave_behind(tmp_path, 1, 2)
    with path.open("ab") as file:
        file.write(to_line(payload(3))[:-5])
    journal = Journal(tmp_path, PLENTY)
    journal.adopt_orphans()
    assert list(drain(journal)) == [payload(1), payload(2)]
    assert journal.damaged_files() == 0


@given(at=st.integers(0, 10_000), junk=st.binary(min_size=1, max_size=50))
def test_a_damaged_file_gives_what_it_has_and_is_set_aside(
    tmp_path_factory: pytest.TempPathFactory, at: int, junk: bytes
) -> None:
    root = tmp_path_factory.mktemp("journal")
    path = leave_behind(root, *range(100))
    whole = path.read_bytes()
    at %= len(whole) - len(junk)
    damaged = whole[:at] + junk + whole[at + len(junk) :]
    path.write_bytes(damaged)
    journal = Journal(root, PLENTY)
    journal.adopt_orphans()
    recovered = set(drain(journal))
    lines = damaged.split(b"\n")[:-1]
    intact = {payload(number) for number in range(100) if to_line(payload(number))[:-1] in lines}
    assert recovered <= {payload(number) for number in range(100)}
    hit = sum(1 for number in range(100) if payload(number) not in recovered)
    # Only the lines that the junk touched are gone, and the one before where it ate a newline.
    assert hit <= len(junk) // (len(to_line(payload(1))) - 1) + 2
    assert recovered == intact
    assert journal.damaged_files() == (1 if hit else 0)


def test_a_file_of_zeros_is_set_aside(tmp_path: Path) -> None:
    path = leave_behind(tmp_path, 1)
    path.write_bytes(bytes(4096))
    journal = Journal(tmp_path, PLENTY)
    journal.adopt_orphans()
    assert list(drain(journal)) == []
    assert journal.damaged_files() == 1


def test_a_directory_that_cannot_be_made_refuses_events_and_heals(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "journal"
    root.write_text("in the way")
    journal = Journal(root, PLENTY)
    with pytest.raises(Unavailable, match="cannot be written"):
        journal.append(payload(1))
    assert "cannot be written" in journal.check()
    root.unlink()
    assert journal.check() == ""
    journal.append(payload(2))
    assert list(drain(journal)) == [payload(2)]
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


def test_a_full_disk_refuses_events_keeps_the_old_and_heals(tmp_path: Path) -> None:
    import signal

    journal = Journal(tmp_path, PLENTY)
    for number in range(10):
        journal.append(payload(number))
    (path,) = tmp_path.rglob("*.log")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    # A limit in the middle of the next line makes write(2) write half of it, as a full disk does.
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 7, before[1]))
    try:
        with pytest.raises(Unavailable):
            journal.append(payload(10))
        assert journal.trouble
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert journal.check() == ""
    journal.append(payload(11))
    assert list(drain(journal)) == [payload(number) for number in range(10)] + [payload(11)]
    assert journal.damaged_files() == 0


def test_sync_waits_for_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEGMENT_BYTES", 30)
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    journal = Journal(tmp_path, PLENTY)
    for number in range(5):
        journal.append(payload(number))
    journal.sync()
    assert {path.stat().st_ino for path in tmp_path.rglob("*.log")} == set(synced)


@given(st.binary().filter(lambda data: b"\n" not in data))
def test_a_line_that_was_changed_is_noticed(data: bytes) -> None:
    line = to_line(data)[:-1]
    assert from_line(line) == data
    assert from_line(line[:-1]) is None
    changed = bytes([line[-1] ^ 1])
    assert from_line(line[:-1] + changed) is None
