"""Stands in for psycopg when a recipe runs on SQLite: it is copied beside the recipe as `psycopg.py`."""

import re
import sqlite3
from collections.abc import Iterable
from typing import Any


class Cursor(sqlite3.Cursor):
    def executemany(self, sql: str, rows: Iterable[Any], /) -> "Cursor":
        super().executemany(re.sub(r"%\((\w+)\)s", r":\1", sql), rows)
        return self


class Connection(sqlite3.Connection):
    def cursor(self, *_: Any) -> Cursor:  # type: ignore[override]
        return super().cursor(Cursor)


def connect(path: str) -> Connection:
    return sqlite3.connect(path, factory=Connection, timeout=20)
