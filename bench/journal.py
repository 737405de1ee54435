"""What one event costs the event loop: a line in our journal, compared with a commit in SQLite.

Both survive a SIGKILL and neither waits for the disk: SQLite in WAL mode with synchronous=OFF and no
checkpoint on this thread. Alternating runs, medians: `python bench/journal.py`.
"""

import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from receiver.journal.journal import Journal
from shared.events import Event, encode

EVENTS = 20_000
ROUNDS = 7
PAYLOAD = encode(
    Event(
        "user123",
        "callbackAfterUserOfflineCommand",
        1732345678901,
        "",
        1,
        "IOS",
        "1732345678901-user123",
        1732345678955,
    )
)


def ours(root: Path) -> Callable[[], None]:
    journal = Journal(root / "journal", 1 << 40)
    return lambda: journal.append(PAYLOAD)


def sqlite(root: Path) -> Callable[[], None]:
    db = sqlite3.connect(root / "journal.db", isolation_level=None)
    for setting in ("journal_mode=WAL", "synchronous=OFF", "wal_autocheckpoint=0"):
        db.execute(f"PRAGMA {setting}")
    db.execute("CREATE TABLE events (id INTEGER PRIMARY KEY, payload BLOB)")
    insert = "INSERT INTO events (payload) VALUES (?)"
    return lambda: db.execute(insert, (PAYLOAD,)) and None


def microseconds(make: Callable[[Path], Callable[[], None]]) -> float:
    with tempfile.TemporaryDirectory() as root:
        append = make(Path(root))
        append()
        started = time.perf_counter()
        for _ in range(EVENTS):
            append()
        return (time.perf_counter() - started) / EVENTS * 1e6


def main() -> None:
    runs: dict[str, list[float]] = {"journal": [], "sqlite": []}
    for _ in range(ROUNDS):
        runs["journal"].append(microseconds(ours))
        runs["sqlite"].append(microseconds(sqlite))
    python = sys.version.split()[0]
    print(f"Python {python}, SQLite {sqlite3.sqlite_version}, {EVENTS} events of {len(PAYLOAD)} bytes")

    for name, values in runs.items():
        print(f"{name:<8} {statistics.median(values):6.1f} us an event ({min(values):.1f} to {max(values):.1f})")
    ratio = statistics.median(runs["sqlite"]) / statistics.median(runs["journal"])
    print(f"ratio    {ratio:6.1f}")


if __name__ == "__main__":
    main()
