"""`presence receiver` and `presence worker`: the same as `python -m`."""

import os
import sys

import click


def _become(module: str) -> None:
    # By exec, not by import: the packages that run must not be imported from here.
    os.execv(sys.executable, [sys.executable, "-m", module])  # noqa: S606


@click.command()
def receiver() -> None:
    """Runs one receiver."""
    _become("receiver")


@click.command()
def worker() -> None:
    """Runs one worker."""
    _become("worker")
