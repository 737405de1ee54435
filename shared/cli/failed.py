"""`presence failed`: what could not be applied."""

import json
import sys
import time
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
from shared.logs.text import is_utf8
from shared.redis.client import connect

EVENTS_SHOWN = 5
#: The time for a worker to try what was requeued.
OUTCOME_SECONDS = 5.0


@click.group()
def failed() -> None:
    """Shows, retries or discards batches that could not be applied. The setting that matters: PRESENCE_QUEUE_URL.

    \b
    Example:
      presence failed list
    """


@failed.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a failed batch.")
def list_(as_json: bool) -> None:
    """Shows what failed, why, whose it is and since when. What is still being tried follows.

    \b
    Examples:
      presence failed list
      presence failed list --json | jq -r '.events[].user_id'
    """
    with _batches() as batches:
        found = batches.read()
        retrying = [] if as_json else batches.retrying()
        now_ms = batches.now_ms()
    for each in found:
        click.echo(json.dumps(_as_json(each)) if as_json else _as_text(each, now_ms))
    for next_at, each in retrying:
        who = ", ".join(str(event["user_id"]) for event in each.events[:EVENTS_SHOWN])
        seconds = max(0.0, (next_at - now_ms) / 1000)
        click.echo(safe(f"still being tried, next in {seconds:.0f} s: {who}: {each.error}"))
    if found and not as_json:
        click.echo("fix the cause, then: presence failed requeue ID, or --all; to discard one: presence failed drop ID")
    if not found and not as_json:
        click.echo("nothing has failed for good" if retrying else "nothing has failed")


def _chosen(command: Callable[..., None]) -> Callable[..., None]:
    command = click.option("--all", "everything", is_flag=True, help="All that have failed.")(command)
    return click.argument("ids", nargs=-1, metavar="[ID...]")(command)


@failed.command()
@_chosen
def requeue(ids: tuple[str, ...], everything: bool) -> None:
    """Tries failed batches once more, when their cause is gone. What still cannot be applied fails again.

    If there is a worker, it waits a moment and says what has failed again; the exit code is then 1.

    \b
    Examples:
      presence failed requeue --all
      presence failed requeue 6f1c8b2a-0
    """
    _each(ids, everything, FailedBatches.requeue, "requeued", _wait)


@failed.command()
@_chosen
def drop(ids: tuple[str, ...], everything: bool) -> None:
    """Discards failed batches for good. What they say about their users is lost.

    \b
    Example:
      presence failed drop 6f1c8b2a-0
    """
    _each(ids, everything, FailedBatches.drop, "dropped")


def _each(
    ids: tuple[str, ...],
    everything: bool,
    action: Callable[[FailedBatches, str], bool],
    done: str,
    then: Callable[[FailedBatches, list[str]], dict[str, str]] = lambda _batches, _ids: {},
) -> None:
    if bool(ids) == everything:
        raise click.UsageError("name ids, as `presence failed list` shows them, or say --all; nothing was done")
    with _batches() as batches:
        results = {
            job_id: is_utf8(job_id) and action(batches, job_id) for job_id in (batches.ids() if everything else ids)
        }
        again = then(batches, [job_id for job_id, was_there in results.items() if was_there])
    click.echo(f"{sum(results.values())} {done}")
    missing = [job_id for job_id, was_there in results.items() if not was_there]
    for job_id in missing:
        click.echo(f"presence: {safe(job_id)} is not among the failed, or its job is gone", err=True)
    for job_id, error in again.items():
        click.echo(f"presence: {safe(job_id)} has failed again: {safe(error)}", err=True)
    if missing or again:
        sys.exit(1)


def _wait(batches: FailedBatches, ids: list[str]) -> dict[str, str]:
    """The errors of those that have failed again within OUTCOME_SECONDS."""
    give_up_at = time.monotonic() + (OUTCOME_SECONDS if ids and batches.has_workers() else 0)
    outcomes: dict[str, str | None] = dict.fromkeys(ids)
    while (waiting := [job_id for job_id, each in outcomes.items() if each is None]) and time.monotonic() < give_up_at:
        outcomes |= {job_id: batches.outcome(job_id) for job_id in waiting}
        time.sleep(0.05)
    return {job_id: error for job_id, error in outcomes.items() if error}


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
    """The batch for JSON; seq is text, as everywhere: JavaScript loses digits past 2^53."""
    return {**asdict(each), "events": [{**event, "seq": str(event["seq"])} for event in each.events]}


def _as_text(each: Failed, now_ms: int) -> str:
    when = f"{moment(each.failed_at)} ({age(each.failed_at, now_ms)} ago)" if each.failed_at else "at an unknown time"
    lines = [f"{safe(each.id)}  failed {when}, tries {each.attempts}: {safe(each.error)}"]
    for event in each.events[:EVENTS_SHOWN]:
        who = f"{event['user_id']}  {event['command']}  seq {event['seq']}"
        lines.append(safe(f"    {who}  operationID {event['operation_id']}"))
    if len(each.events) > EVENTS_SHOWN:
        lines.append(f"    ... and {len(each.events) - EVENTS_SHOWN:,} more events (--json has all)")
    return "\n".join(lines)
