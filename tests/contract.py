"""The tables of docs/redis-keys.md."""

import re

from support import ROOT

PAGE = (ROOT / "docs" / "redis-keys.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading, row by row, without the header row."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def fields(heading: str) -> set[str]:
    """Everything that the first column of that table names."""
    return {name for row in rows(heading) for name in re.findall(r"`([^`]+)`", row[0])}


def keys() -> dict[str, tuple[str, str]]:
    """For each key its type and its server."""
    return {row[0].strip("`"): (row[1], row[2]) for row in rows("The keys")}
