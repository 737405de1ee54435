"""Stands in for psycopg when examples/mirror.py runs on SQLite: it is copied beside it as `psycopg.py`."""

import sqlite3
from collections.abc import Iterable
from typing import Any

Error = sqlite3.Error


class Cursor(sqlite3.Cursor):
    def executemany(self, sql: str, rows: Iterable[Any], /) -> "Cursor":
        super().executemany(sql.replace("%s", "?"), rows)
        return self


class Connection(sqlite3.Connection):
    def cursor(self, *_: Any) -> Cursor:  # type: ignore[override]
        return super().cursor(Cursor)


def connect(path: str) -> Connection:
    return sqlite3.connect(path, factory=Connection, timeout=20)
