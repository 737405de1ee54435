"""Looks at the journal's directory, and tries to write and lock there in a scratch folder that it removes."""

import fcntl
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from shared.doctor.journal import JournalFacts

_SCRATCH = "doctor-"  # receivers look for folders of another name


def look_at(directory: Path) -> JournalFacts:
    """Raises nothing, but hangs if the file system does."""
    path = directory.absolute()
    kind = file_system(path)
    try:
        status, disk = path.stat(), os.statvfs(path)
    except FileNotFoundError:
        return JournalFacts(str(path), exists=False, file_system=kind)
    except OSError as error:
        return JournalFacts(str(path), exists=True, file_system=kind, trouble=str(error.strerror))
    trouble, lock_trouble = _try(path)
    damaged, unreadable, sizes = _contents(path)
    return JournalFacts(
        str(path),
        exists=True,
        file_system=kind,
        free_bytes=disk.f_bavail * disk.f_frsize,
        trouble=trouble,
        is_foreign=status.st_uid != os.geteuid(),
        lock_trouble=lock_trouble,
        damaged=tuple(damaged),
        unreadable=tuple(unreadable),
        waiting_files=len(sizes),
        waiting_bytes=sum(sizes),
    )


def _try(path: Path) -> tuple[str, str]:
    """Why nothing can be written, and why nothing can be locked; each "" if it can."""
    try:
        with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=path) as scratch:
            with (Path(scratch) / "try").open("wb") as file:
                file.write(b"\0" * 4096)
                file.flush()
                os.fsync(file.fileno())
            return "", _try_lock(Path(scratch))
    except OSError as error:
        return str(error.strerror), ""


def _try_lock(folder: Path) -> str:
    """Locks as receivers do, with flock(2) on the folder itself. A second lock must fail."""
    first, second = (os.open(folder, os.O_RDONLY | os.O_DIRECTORY) for _ in range(2))
    try:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return ""
        return "two locks on one folder were granted"
    except OSError as error:
        return str(error.strerror)
    finally:
        os.close(first)
        os.close(second)


def _contents(path: Path) -> tuple[list[str], list[str], list[int]]:
    """Files set aside, what cannot be read, and the sizes of files with events."""
    damaged = [file.name for file in path.glob("*.damaged")]
    unreadable: list[str] = []
    sizes: list[int] = []
    for folder in path.glob("events-*"):
        try:
            for file in folder.glob("*.log"):
                if not os.access(file, os.R_OK):
                    unreadable.append(f"{folder.name}/{file.name}")
                if size := file.stat().st_size:
                    sizes.append(size)
            if not os.access(folder, os.R_OK | os.X_OK):
                unreadable.append(folder.name)
        except FileNotFoundError:  # a receiver has just pushed what was in it
            continue
    return damaged, unreadable, sizes


def file_system(path: Path) -> str:
    """The type of the file system that the path is on, or will be, by the kernel's table; "" if there is none."""
    with suppress(OSError, ValueError):
        path = path.resolve()
        best, kind = -1, ""
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            before, _, after = line.partition(" - ")
            mount = Path(before.split()[4].encode().decode("unicode_escape"))
            if (path == mount or mount in path.parents) and len(mount.parts) >= best:
                best, kind = len(mount.parts), after.split()[0]  # of two at one place the later one counts
        return kind
    return ""
