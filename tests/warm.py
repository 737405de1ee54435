"""Starts the project's programs by forking an interpreter that has imported them already.

Importing costs a program half a second of processor time, and the tests start hundreds of programs. What runs is the
same: a process with an environment, a directory, an output and signals of its own, which begins with `__main__`.
Programs that ask for what Python reads before it begins, such as PYTHONIOENCODING, are started as usual. What
`presence up` and receivers start, they start as ever.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

PROGRAMS = ("receiver", "worker")
PRESENCE = str(Path(sys.executable).with_name("presence"))
MESSAGE_MOST = 200_000  # bytes: an environment is some thousand


class Program:
    """As much of `subprocess.Popen` as tests use."""

    def __init__(self, interpreter: "Interpreter", command: list[str], pid: int) -> None:
        self.args = command
        self.pid = pid
        self.returncode: int | None = None
        self._interpreter = interpreter
        self._descriptor = os.pidfd_open(pid)

    def poll(self) -> int | None:
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, as `subprocess` gives it. timeout: in seconds."""
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return code

    def _ended(self, within: float | None) -> int | None:
        if self.returncode is None:
            poll = select.poll()
            poll.register(self._descriptor, select.POLLIN)
            if poll.poll(within if within is None else within * 1000):
                self.returncode = self._interpreter.exit_code(self.pid)
                os.close(self._descriptor)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Interpreter:
    """The one that is forked. It ends with the process that made it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, __file__, str(theirs.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdout=subprocess.DEVNULL)
        atexit.register(self._end)

    def _end(self) -> None:
        self._connection.close()
        self._process.wait()

    def start(
        self, command: list[str], environment: Mapping[str, str], directory: Path, stdout: int, stderr: int
    ) -> Program:
        message = json.dumps([command, dict(environment), str(directory)]).encode()
        with self._lock:
            socket.send_fds(self._connection, [message], [stdout, stderr])
            pid = int(self._connection.recv(MESSAGE_MOST))
        return Program(self, command, pid)

    def exit_code(self, pid: int) -> int:
        """That of a program that has ended; it can be asked for once."""
        with self._lock:
            self._connection.send(json.dumps(pid).encode())
            return int(self._connection.recv(MESSAGE_MOST))


@functools.cache
def interpreter() -> Interpreter:
    return Interpreter()


def can_start(command: list[str], environment: Mapping[str, str]) -> bool:
    """Is it one of ours that asks for nothing before it begins, and can this machine do it?"""
    ours = command[0] == sys.executable and command[1] in ("-m", "-c", PRESENCE)
    return ours and hasattr(os, "pidfd_open") and _early(environment) == _early(os.environ)


def _early(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(("PYTHON", "LC_", "LANG"))}


def main(connection: socket.socket) -> None:
    """Answers the other end of the connection, and in each fork returns as the program that was asked for."""
    for name in (f"{program}.__main__" for program in PROGRAMS):
        importlib.import_module(name)
        del sys.modules[name]  # a program runs its own
    importlib.import_module("shared.cli")
    gc.freeze()  # so that a program's collections leave what is shared alone
    while True:
        message, descriptors, *_ = socket.recv_fds(connection, MESSAGE_MOST, 2)
        if not message:
            return
        request = json.loads(message)
        if isinstance(request, int):
            answer = os.waitstatus_to_exitcode(os.waitpid(request, 0)[1])
        elif not (answer := os.fork()):
            connection.close()
            _become(*request, *descriptors)
            return
        for descriptor in descriptors:
            os.close(descriptor)
        connection.send(str(answer).encode())


def _become(command: list[str], environment: dict[str, str], directory: str, *descriptors: int) -> None:
    for ours, descriptor in enumerate(descriptors, 1):
        os.dup2(descriptor, ours)
        os.close(descriptor)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    match command[1:]:
        case ["-m", module, *arguments]:
            sys.path[0] = directory
            sys.argv = [module, *arguments]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case ["-c", program, *arguments]:
            sys.path[0] = ""
            sys.argv = ["-c", *arguments]
            exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102  # as `python -c` does
        case [script, *arguments]:
            sys.path[0] = str(Path(script).parent)
            sys.argv = [script, *arguments]
            runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
