"""A stream whose reader is slow, gone, or has a full disk."""

import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import wait_until

from shared.logs.streams import QueuedStream

PIPE_BYTES = 4096


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ours, theirs = os.pipe()
    fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    yield ours, theirs
    os.close(ours)  # a write that still waits then ends


def test_lines_arrive_whole_and_in_order(pipe: tuple[int, int]) -> None:
    stream = QueuedStream(pipe[1], "utf-8")
    print("one", "two", file=stream)
    stream.write("three")
    stream.drain()
    assert os.read(pipe[0], 100) == b"one two\nthree\n"


def test_what_an_encoding_lacks_is_escaped(pipe: tuple[int, int]) -> None:
    stream = QueuedStream(pipe[1], "gbk")
    print("用户 👍", file=stream)
    stream.drain()
    assert os.read(pipe[0], 100) == "用户 ".encode("gbk") + b"\\U0001f44d\n"


def test_a_pipe_that_nobody_empties_holds_nobody_up(pipe: tuple[int, int], caplog: pytest.LogCaptureFixture) -> None:
    stream = QueuedStream(pipe[1], "utf-8", max_bytes=2000)
    for number in range(100):
        stream.write(f"{number:0100}\n")
    assert stream.dropped > 0
    os.set_blocking(pipe[0], False)

    def emptied() -> bool:
        try:
            os.read(pipe[0], PIPE_BYTES)
        except BlockingIOError:
            return bool(caplog.messages)
        return False

    wait_until(emptied)
    assert caplog.messages == [f"{stream.dropped} log lines were left out: nothing read them in time"]


def test_a_pipe_that_does_not_block_is_waited_for(pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[1], False)
    stream = QueuedStream(pipe[1], "utf-8")
    text = "".join(f"{number:0100}\n" for number in range(200))
    stream.write(text)
    found = b""
    while len(found) < len(text):
        found += os.read(pipe[0], 1000)
    assert found.decode() == text
    assert stream.dropped == 0


def test_lines_for_a_reader_that_is_gone_are_counted() -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    stream = QueuedStream(theirs, "utf-8")
    stream.write("one\ntwo\n")
    stream.drain()
    assert stream.dropped == 2
    os.close(theirs)


def test_lines_for_a_full_disk_are_counted_and_those_after_it_are_written(tmp_path: Path) -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    stream = QueuedStream(descriptor, "utf-8")
    stream.write("one\n")
    stream.drain()
    assert stream.dropped == 1
    with (tmp_path / "log").open("wb") as file:
        os.dup2(file.fileno(), descriptor)
    stream.write("two\n")
    stream.drain()
    assert (tmp_path / "log").read_text() == "two\n"
    os.close(descriptor)


def test_whoever_writes_a_warning_while_the_stream_is_held_does_not_wait_for_itself(pipe: tuple[int, int]) -> None:
    stream = QueuedStream(pipe[1], "utf-8")
    done = threading.Event()

    def nested() -> None:
        with stream._changed:
            stream.write("from the garbage collector\n")
        done.set()

    threading.Thread(target=nested, daemon=True).start()
    assert done.wait(10)
