"""`presence receiver` and `presence worker`: the same as `python -m`."""

import os
import sys

import click


def _become(module: str) -> None:
    # By exec, not by import: shared must not import the receiver or the worker.
    os.execv(sys.executable, [sys.executable, "-m", module])  # noqa: S606


@click.command()
def receiver() -> None:
    """Runs one receiver, as `python -m receiver` does.

    Settings that matter: PRESENCE_REDIS_URL, PRESENCE_HOST, PRESENCE_PORT, PRESENCE_ADMIN_PORT (the page),
    PRESENCE_JOURNAL_DIR, PRESENCE_PROCESSES.

    \b
    Example:
      PRESENCE_REDIS_URL=redis://redis:6379/0 PRESENCE_JOURNAL_DIR=/var/lib/presence presence receiver
    """
    _become("receiver")


@click.command()
def worker() -> None:
    """Runs one worker, as `python -m worker` does.

    Settings that matter: PRESENCE_REDIS_URL, PRESENCE_QUEUE_URL, PRESENCE_WORKER_ADMIN_PORT.

    \b
    Example:
      PRESENCE_REDIS_URL=redis://redis:6379/0 presence worker
    """
    _become("worker")
