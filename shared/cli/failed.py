"""`presence failed`: what could not be applied."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import click
from redis.exceptions import RedisError

from shared import settings
from shared.cli.running import load_settings
from shared.cli.text import age, moment, safe
from shared.errors import Unavailable
from shared.failed import Failed, FailedBatches
from shared.redis.client import connect

EVENTS_SHOWN = 5


@click.group()
def failed() -> None:
    """Shows, retries or forgets batches that could not be applied."""


@failed.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a failed batch.")
def list_(as_json: bool) -> None:
    """Shows what failed, why, whose it is, and since when."""
    with _batches() as batches:
        found = batches.read()
    for each in found:
        click.echo(json.dumps(_as_json(each)) if as_json else _as_text(each))
    if not found and not as_json:
        click.echo("nothing has failed")


def _chosen(command: Callable[..., None]) -> Callable[..., None]:
    command = click.option("--all", "everything", is_flag=True, help="All that have failed.")(command)
    return click.argument("ids", nargs=-1, metavar="[ID...]")(command)


@failed.command()
@_chosen
def requeue(ids: tuple[str, ...], everything: bool) -> None:
    """Tries failed batches once more, once their cause is gone. What still cannot be applied comes back here."""
    _each(ids, everything, FailedBatches.requeue, "requeued")


@failed.command()
@_chosen
def drop(ids: tuple[str, ...], everything: bool) -> None:
    """Forgets failed batches for good, and with them what they say about their users."""
    _each(ids, everything, FailedBatches.drop, "dropped")


def _each(ids: tuple[str, ...], everything: bool, action: Callable[[FailedBatches, str], bool], done: str) -> None:
    if bool(ids) == everything:
        raise click.UsageError("say which: ids, as `presence failed list` shows them, or --all; nothing was done")
    with _batches() as batches:
        results = {job_id: action(batches, job_id) for job_id in (batches.ids() if everything else ids)}
    click.echo(f"{sum(results.values())} {done}")
    missing = [job_id for job_id, was_there in results.items() if not was_there]
    for job_id in missing:
        click.echo(f"presence: {safe(job_id)} is not among the failed, or its job is gone", err=True)
    if missing:
        sys.exit(1)


@contextmanager
def _batches() -> Iterator[FailedBatches]:
    config = load_settings()
    try:
        with connect(config.queue_url) as client:
            yield FailedBatches(client, config)
    except RedisError as error:
        where = settings.without_password(config.queue_url)
        raise Unavailable(f"Redis at {where}: {error} (PRESENCE_QUEUE_URL says where the queue is)") from None


def _as_json(each: Failed) -> dict[str, Any]:
    """seq as text, as everywhere: JavaScript loses digits past 2^53."""
    return {**asdict(each), "events": [{**event, "seq": str(event["seq"])} for event in each.events]}


def _as_text(each: Failed) -> str:
    when = f"{moment(each.failed_at)} ({age(each.failed_at)} ago)" if each.failed_at else "at an unknown time"
    lines = [f"{safe(each.id)}  failed {when}, tries {each.attempts}: {safe(each.error)}"]
    for event in each.events[:EVENTS_SHOWN]:
        who = f"{event['user_id']}  {event['command']}  seq {event['seq']}"
        lines.append(safe(f"    {who}  operationID {event['operation_id']}"))
    if len(each.events) > EVENTS_SHOWN:
        lines.append(f"    ... and {len(each.events) - EVENTS_SHOWN:,} more events (--json has all)")
    return "\n".join(lines)
