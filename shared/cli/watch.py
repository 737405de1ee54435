"""`presence watch`: status changes as they happen."""

import json
import logging
import time
from contextlib import suppress
from typing import Any

import click
from redis.exceptions import RedisError

from shared import log as logs
from shared import settings
from shared.cli.text import moment, safe
from shared.outage import Outage
from shared.redis import connect

BLOCK_SECONDS = 2


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def watch(as_json: bool) -> None:
    """Shows status changes as they happen, until Ctrl-C. Waits for Redis where it goes away."""
    config = settings.load()
    logs.set_up(config.log_level, config.log_format)
    outage = Outage(logging.getLogger("watch"), settings.without_password(config.redis_url))
    client = connect(config.redis_url, timeout=BLOCK_SECONDS + 3)
    with suppress(KeyboardInterrupt):
        _follow(client, config.keys.changes, as_json, outage)


def _follow(client: Any, stream: str, as_json: bool, outage: Outage) -> None:
    last: bytes | None = None
    while True:
        try:
            if last is None:
                newest = client.xrevrange(stream, count=1)
                last = newest[0][0] if newest else b"0-0"
            for entry, fields in _read(client, stream, last):
                click.echo(_show(fields, as_json))
                last = entry
            outage.over()
        except RedisError as error:
            time.sleep(outage.failed(error))


def _read(client: Any, stream: str, after: bytes) -> list[tuple[bytes, dict[bytes, bytes]]]:
    reply = client.xread({stream: after}, count=1000, block=BLOCK_SECONDS * 1000)
    return reply[0][1] if reply else []


def _show(fields: dict[bytes, bytes], as_json: bool) -> str:
    change = {name.decode(): value.decode() for name, value in fields.items()}
    if as_json:
        return json.dumps({**change, "changed_at": int(change["changed_at"])})
    return (
        f"{moment(int(change['changed_at']))}  {safe(change['user_id']):<24} "
        f"{change['previous'] or 'unknown'} -> {change['status']}  ({safe(change['command'])})"
    )
