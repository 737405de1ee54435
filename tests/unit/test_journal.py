"""The journal, on real files."""

import asyncio
import errno
import fcntl
import os
import re
import resource
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from receiver.journal import folder, recent, writer
from receiver.journal import journal as module
from receiver.journal.fsync import SyncBeforeAck
from receiver.journal.journal import Journal
from receiver.journal.segment import Batch, Segment, from_line, to_line
from shared.errors import Unavailable
from shared.events import Event, encode

PLENTY = 1 << 30


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "SEGMENT_BYTES", 100)


def payload(number: int) -> bytes:
    return b'{"event":%d}' % number


def drain(journal: Journal, most: int = 1000) -> Iterator[bytes]:
    """What a relay would push; settles it at once."""
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


class _Relayed(RuleBasedStateMachine):
    """A journal and a relay: whether events come from memory or from the file, each comes in its turn."""

    def __init__(self) -> None:
        super().__init__()
        self.root = tempfile.TemporaryDirectory()
        self.limits = pytest.MonkeyPatch()
        self.limits.setattr(writer, "SEGMENT_BYTES", 400)
        self.limits.setattr(recent, "MOST_BYTES", 150)
        self.journal = Journal(Path(self.root.name), PLENTY)
        self.appended = self.pushed = self.settled = 0
        self.batches: list[Batch] = []

    def teardown(self) -> None:
        self.journal.close()
        self.limits.undo()
        self.root.cleanup()

    @rule(count=st.integers(1, 12))
    def append(self, count: int) -> None:
        for _ in range(count):
            self.journal.append(payload(self.appended))
            self.appended += 1

    @rule(most=st.sampled_from([1, 3, 100]), is_taken=st.booleans())
    def push(self, most: int, is_taken: bool) -> None:
        batch = self.journal.next_batch(most)
        if batch is None:
            assert self.pushed == self.appended
            return
        assert 0 < batch.lines == len(batch.payloads) <= most
        assert batch.payloads == [payload(number) for number in range(self.pushed, self.pushed + batch.lines)]
        if is_taken:
            self.journal.pushed(batch)
            self.pushed += batch.lines
            self.batches.append(batch)

    @precondition(lambda self: self.batches)
    @rule()
    def settle(self) -> None:
        batch = self.batches.pop(0)
        self.journal.settled(batch)
        self.settled += batch.lines

    @rule()
    def lose_the_memory_of_redis(self) -> None:
        self.journal.push_again()
        self.batches.clear()
        self.pushed = self.settled

    @rule()
    def restart(self) -> None:
        self.journal.close()
        self.journal = Journal(Path(self.root.name), PLENTY)
        self.journal.adopt_orphans()
        self.batches.clear()
        # What was settled of a file that has more is pushed again.
        self.pushed = self.settled = self.appended - self.journal.waiting_events

    @invariant()
    def all_are_counted_and_few_in_memory(self) -> None:
        assert self.journal.waiting_events == self.appended - self.pushed
        assert sum(map(len, self.journal._recent._payloads)) <= 150


TestRelayed = _Relayed.TestCase


def test_an_event_is_in_the_file_when_append_returns(tmp_path: Path) -> None:
    journal = Journal(tmp_path, PLENTY)
    journal.append(payload(1))
    (path,) = tmp_path.rglob("*.log")
    assert path.read_bytes() == to_line(payload(1))


def test_other_users_of_the_machine_can_neither_read_nor_lock_it(tmp_path: Path) -> None:
    Journal(tmp_path, 1 << 20).append(payload(1))
    (own,) = tmp_path.iterdir()
    (file,) = own.iterdir()
    assert (own.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o600)


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
    aside = root / "aside"  # so that it does not adopt another's folder
    journal = Journal(aside, PLENTY)
    for number in numbers:
        journal.append(payload(number))
    assert journal._writer.folder is not None
    journal._writer.folder.release()
    folder = journal._writer.folder.path.rename(root / journal._writer.folder.path.name)
    aside.rmdir()
    (path,) = folder.glob("*.log")
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
        assert journal.next_batch(10)  # Redis does not take it
    for path in tmp_path.rglob("*.log"):
        path.unlink()
    assert journal.next_batch(10) is None
    assert "2 accepted events with it" in caplog.text
    journal.append(payload(3))
    assert list(tmp_path.rglob("*.log")) != []
    assert list(drain(journal)) == [payload(3)]
    assert (journal.waiting_events, journal.waiting_bytes) == (0, 0)


def test_events_that_are_in_memory_outlive_their_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal(tmp_path, PLENTY)
    journal.append(payload(1))
    (path,) = tmp_path.rglob("*.log")
    path.unlink()
    batch = journal.next_batch(10)
    assert batch and batch.payloads == [payload(1)]
    assert "still in memory" in caplog.text
    journal.pushed(batch)
    journal.append(payload(2))
    assert [path.read_bytes() for path in tmp_path.rglob("*.log")] == [to_line(payload(2))]
    journal.settled(batch)
    assert list(drain(journal)) == [payload(2)]
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
    assert journal.unreadable_files() == 1
    journal._segments[0].unreadable_until -= module.UNREADABLE_SECONDS
    assert list(drain(journal)) == [payload(2)]
    assert journal.unreadable_files() == 0


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
    lines = re.split(rb"[\n\0]+", damaged)[:-1]  # a line that is whole between zeros is whole
    intact = {payload(number) for number in range(100) if to_line(payload(number))[:-1] in lines}
    assert recovered <= {payload(number) for number in range(100)}
    hit = sum(1 for number in range(100) if payload(number) not in recovered)
    # Only the lines that the junk touched are gone, and the one before if the junk replaced its newline.
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
    monkeypatch.setattr(writer, "SEGMENT_BYTES", 30)
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    journal = Journal(tmp_path, PLENTY)
    for number in range(5):
        journal.append(payload(number))
    journal.sync()
    assert {path.stat().st_ino for path in tmp_path.rglob("*.log")} == set(synced)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.usefixtures("small_segments")
def test_a_process_at_its_limit_of_descriptors_loses_none_in_a_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    before = open_files()
    journal = Journal(tmp_path, PLENTY)
    for number in range(22):
        journal.append(payload(number))
    monkeypatch.setattr(os, "dup", refuse)
    journal.sync()
    assert open_files() <= before + 2  # the folder and the file that is being written
    journal.close()
    assert open_files() == before


@pytest.mark.usefixtures("small_segments")
def test_a_sync_that_fails_does_so_for_each_file_alone_and_closes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []

    def fail_at_first(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) == 1:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail_at_first)
    before = open_files()
    journal = Journal(tmp_path, PLENTY)
    for number in range(20):
        journal.append(payload(number))
    with pytest.raises(OSError, match="Input/output"):
        journal.sync()
    assert len(synced) == len(files(tmp_path))
    assert journal.unsafe_to == journal.appended == 20
    journal.append(payload(20))
    journal.sync()
    assert journal.unsafe_to == 20
    journal.close()
    assert open_files() == before


@pytest.mark.usefixtures("small_segments")
def test_an_answer_waits_for_the_sync_of_another_and_hears_of_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With PRESENCE_JOURNAL_FSYNC=always: the periodic sync has the full file that the event is in."""
    under_way, fail = threading.Event(), threading.Event()

    def fail_later(descriptor: int) -> None:
        under_way.set()
        assert fail.wait(10)
        raise OSError(errno.EIO, "Input/output error")

    journal = Journal(tmp_path, PLENTY)
    journal.append(b"x" * 200)  # fills its file
    monkeypatch.setattr(os, "fdatasync", fail_later)
    periodic = threading.Thread(target=_sync_quietly, args=[journal])
    periodic.start()
    assert under_way.wait(10)
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: None)

    async def answer() -> None:
        waiting = asyncio.create_task(SyncBeforeAck(journal).wait())
        await asyncio.sleep(0)
        fail.set()
        await waiting

    with pytest.raises(Unavailable, match="could not be synced"):
        asyncio.run(answer())
    periodic.join()
    journal.append(payload(1))
    asyncio.run(SyncBeforeAck(journal).wait())


def _sync_quietly(journal: Journal) -> None:
    with suppress(OSError):
        journal.sync()


def test_a_file_system_without_locks_refuses_events_and_keeps_no_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", no_locks)
        journal = Journal(tmp_path, PLENTY)
        for number in range(3):
            with pytest.raises(Unavailable, match="No locks available"):
                journal.append(payload(number))
        assert "No locks available" in journal.check()
    assert list(tmp_path.iterdir()) == []
    journal.append(payload(3))
    assert list(drain(journal)) == [payload(3)]


def test_a_folder_that_cannot_be_opened_holds_up_no_other_and_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folders = [leave_behind(tmp_path, number).parent for number in (1, 2, 3)]
    really_open, broken = os.open, {folders[0]}

    def open_folder(path: Path, flags: int, *mode: int) -> int:
        if path in broken:
            raise OSError(errno.EIO, "Input/output error")
        return really_open(path, flags, *mode)

    monkeypatch.setattr(os, "open", open_folder)
    journal = Journal(tmp_path, PLENTY)
    for _ in range(2):
        journal.adopt_orphans()
    assert list(drain(journal)) == [payload(2), payload(3)]
    assert (journal.unreadable_files(), journal.knows_all()) == (1, False)
    assert caplog.text.count("cannot be taken over") == 1
    broken.clear()
    journal.adopt_orphans()
    assert list(drain(journal)) == [payload(1)]
    assert (journal.unreadable_files(), journal.knows_all()) == (0, True)


def test_a_directory_that_cannot_be_listed_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(root: Path) -> list[Path]:
        raise OSError(errno.EIO, "Input/output error")

    journal = Journal(tmp_path, PLENTY)
    journal.append(payload(1))
    with monkeypatch.context() as patched:
        patched.setattr(folder, "paths", fail)
        journal.adopt_orphans()
        assert (journal.unreadable_files(), journal.knows_all()) == (1, False)
        assert list(drain(journal)) == [payload(1)]
    journal.adopt_orphans()
    assert (journal.unreadable_files(), journal.knows_all()) == (0, True)


@pytest.mark.usefixtures("small_segments")
def test_a_file_that_cannot_be_measured_holds_up_no_neighbour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = leave_behind(tmp_path, 1)
    path.with_name("00000002.log").write_bytes(to_line(payload(2)))
    measure, broken = module.measure, {path}

    def fail(segment: Segment) -> bytes:
        if segment.path in broken:
            raise OSError(errno.EIO, "Input/output error")
        return measure(segment)

    monkeypatch.setattr(module, "measure", fail)
    journal = Journal(tmp_path, PLENTY)
    journal.adopt_orphans()
    assert list(drain(journal)) == [payload(2)]
    assert (journal.unreadable_files(), journal.knows_all(), journal.waiting_events) == (1, False, 0)
    broken.clear()
    journal._segments[0].unreadable_until -= module.UNREADABLE_SECONDS
    assert list(drain(journal)) == [payload(1)]
    assert journal.knows_all()
    journal.close()
    assert list(tmp_path.iterdir()) == []


def test_what_others_left_costs_no_room(tmp_path: Path) -> None:
    """Four processes at their limits are killed during an outage; one of them comes back first."""
    limit = 3 * len(to_line(payload(1)))
    for _ in range(4):
        leave_behind(tmp_path, 1, 2, 3)
    first, second = Journal(tmp_path, limit), Journal(tmp_path, limit)
    assert first.check() == second.check() == ""
    first.adopt_orphans()
    assert first.waiting_events == 9
    assert first.room_bytes == 0  # of its own folder
    second.adopt_orphans()
    assert (second.waiting_events, second.room_bytes) == (3, 0)
    third = Journal(tmp_path, limit)
    third.append(payload(4))
    assert third.room_bytes == limit - len(to_line(payload(4)))


def test_what_was_adopted_is_gone_from_the_figures_when_it_is_pushed(tmp_path: Path) -> None:
    leave_behind(tmp_path, 1)
    leave_behind(tmp_path, 2)
    journal = Journal(tmp_path, PLENTY)
    journal.append(payload(3))
    journal.adopt_orphans()
    batches = []
    while batch := journal.next_batch(10):
        journal.pushed(batch)
        batches.append(batch)
    line = len(to_line(payload(1)))
    assert (journal.room_bytes, journal.kept_events, journal.kept_bytes) == (PLENTY, 3, 3 * line)
    assert journal.push_again() == 3
    assert (journal.waiting_bytes, journal.kept_bytes, journal.room_bytes) == (3 * line, 0, PLENTY - 2 * line)
    assert len(list(drain(journal))) == 3
    assert (journal.waiting_bytes, journal.kept_bytes, journal.room_bytes) == (0, 0, PLENTY)


def test_a_journal_is_the_same_after_a_restart_and_never_anothers(tmp_path: Path) -> None:
    first, second = Journal(tmp_path, PLENTY), Journal(tmp_path, PLENTY)
    first.append(payload(1))
    second.append(payload(2))
    assert first.identity != second.identity
    identity = second.identity
    assert second._writer.folder is not None
    second._writer.folder.release()  # killed
    again = Journal(tmp_path, PLENTY)
    again.append(payload(3))
    assert again.identity == identity
    assert (again.knows_all(), again.waiting_events) == (False, 1)
    assert again.adopt_orphans() == []
    assert list(drain(again)) == [payload(2), payload(3)]
    again.close(keep_folder=True)
    third = Journal(tmp_path, PLENTY)
    assert third.check() == ""
    assert third.identity == identity


def test_a_process_that_may_be_starting_again_keeps_its_folder(tmp_path: Path) -> None:
    first = Journal(tmp_path, PLENTY)
    first.append(payload(1))
    path = leave_behind(tmp_path, 2)
    assert first.adopt_orphans(patience_seconds=60) == []
    assert (first.knows_all(), first.unreadable_files()) == (False, 0)
    first._orphans._seen_at[path.parent] -= 60
    assert first.adopt_orphans(patience_seconds=60) == [path.parent.name.removeprefix("events-")]
    assert list(drain(first)) == [payload(2), payload(1)]
    assert first.knows_all()


def event(received_at: int) -> bytes:
    return encode(Event("u", "callbackUserOnlineCommand", 1, "", 1, "", "", received_at))


@pytest.mark.usefixtures("small_segments")
def test_the_oldest_event_is_known_wherever_it_is(tmp_path: Path) -> None:
    now_ms = time.time_ns() // 1_000_000
    leave_behind(tmp_path, 0).write_bytes(to_line(event(now_ms - 1000)) + to_line(event(now_ms - 900)))
    leave_behind(tmp_path, 0).write_bytes(to_line(event(now_ms - 5000)))
    journal = Journal(tmp_path, PLENTY)
    assert journal.oldest_ms() is None
    journal.adopt_orphans()
    journal.append(event(now_ms))
    ages = []
    while batch := journal.next_batch(1):
        ages.append(now_ms - (journal.oldest_ms() or 0))
        journal.pushed(batch)
    assert ages[:3] == [5000, 5000, 5000]
    assert ages[3] < 1000
    assert journal.oldest_ms() is None


LINES = [to_line(payload(number)) for number in range(5)]
WHOLE = [payload(number) for number in range(5)]


@pytest.mark.parametrize(
    ("content", "found", "damaged"),
    [
        (b"".join(LINES) + bytes(4096), WHOLE, False),
        (b"".join(LINES)[:-30] + bytes(30), WHOLE[:3], True),
        (b"".join(LINES)[:-3] + bytes(4096), WHOLE[:4], True),
        (b"".join(LINES)[:-1] + bytes(4096), WHOLE, False),
        (LINES[0] + bytes(4096) + b"".join(LINES[1:]), WHOLE, True),
        (bytes(4096) + b"".join(LINES), WHOLE, True),
        (LINES[0] + LINES[1][:5] + bytes(4096) + LINES[2][5:] + LINES[3], [WHOLE[0], WHOLE[3]], True),
        (LINES[0][:-1] + b"\0" + b"".join(LINES[1:]), WHOLE, False),
        (b"".join(LINES) + bytes(4096) + LINES[0][:4], WHOLE, True),
        (bytes(4096) + b"\n" + LINES[0], WHOLE[:1], True),
    ],
    ids=[
        "zeros after the last line",
        "a last page of zeros, over whole events",
        "zeros over the end of the last line",
        "zeros over the last newline",
        "zeros and then whole lines",
        "zeros at the beginning",
        "a page of zeros in the middle",
        "one zero for a newline",
        "zeros before half a line",
        "zeros up to a newline",
    ],
)
def test_what_is_whole_beside_zeros_is_read_and_what_is_not_is_counted(
    tmp_path: Path, content: bytes, found: list[bytes], damaged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    leave_behind(tmp_path, 0).write_bytes(content)
    journal = Journal(tmp_path, PLENTY)
    journal.adopt_orphans()
    assert list(drain(journal)) == found
    assert ("damaged" in caplog.text, journal.damaged_files()) == (damaged, int(damaged))
    assert (journal.waiting_events, journal.waiting_bytes) == (0, 0)


def test_a_file_that_lost_its_end_says_how_many_events_that_were(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path, PLENTY)
    for number in range(5):
        journal.append(payload(number))
    assert journal.next_batch(10)  # Redis does not take it
    (path,) = tmp_path.rglob("*.log")
    os.truncate(path, 2 * len(LINES[0]))
    assert list(drain(journal)) == [payload(0), payload(1)]
    assert (journal.waiting_events, journal.waiting_bytes) == (0, 0)
    assert "3 damaged lines" in caplog.text


@given(st.binary().filter(lambda data: b"\n" not in data))
def test_a_line_that_was_changed_is_noticed(data: bytes) -> None:
    line = to_line(data)[:-1]
    assert from_line(line) == data
    assert from_line(line[:-1]) is None
    changed = bytes([line[-1] ^ 1])
    assert from_line(line[:-1] + changed) is None
