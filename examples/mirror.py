"""Mirrors presence into a table of PostgreSQL, for reports and joins.

    pip install ./openim_presence 'psycopg[binary]'
    REDIS_URL=redis://127.0.0.1:6379/0 DATABASE_URL=postgresql://127.0.0.1/app python examples/mirror.py

A change says whose row to update; the user's hash, read afterwards, says what the row should contain. The row takes
over the change's id, and is replaced only by a higher one. So changes may come twice and in any order, and several of
these programs may run at once, each with another CONSUMER: all end with what Redis says.
"""

import os
import signal
import sys
import time
from collections.abc import Iterable
from itertools import islice

import psycopg
from redis import Redis
from redis.exceptions import RedisError

from openim_presence import ConsumerGroup, Missed, Presence, read, read_all

CONSUMER = os.environ.get("CONSUMER", "mirror-1")  # the same after a restart
TAKE_OVER_SECONDS = 60
TABLE = """
CREATE TABLE IF NOT EXISTS presence (
    user_id    text PRIMARY KEY,
    status     text NOT NULL,
    changed_at bigint NOT NULL, -- Unix milliseconds
    ms         bigint NOT NULL, -- the row is at least as new as the entry <ms>-<n> of presence-changes
    n          bigint NOT NULL
)
"""
UPSERT = """
INSERT INTO presence (user_id, status, changed_at, ms, n) VALUES (%s, %s, %s, %s, %s)
ON CONFLICT (user_id) DO UPDATE
SET status = excluded.status, changed_at = excluded.changed_at, ms = excluded.ms, n = excluded.n
WHERE (excluded.ms, excluded.n) > (presence.ms, presence.n)
"""

client = Redis.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"), socket_timeout=5)
group = ConsumerGroup(client, "mirror", CONSUMER, take_over_seconds=TAKE_OVER_SECONDS)


def save(database: psycopg.Connection, entries: Iterable[tuple[Presence, str]]) -> None:
    """entries: each user, and the id of a change that was there before the user was read."""
    rows = [
        (user.user_id, user.status, user.changed_at, *map(int, entry.split("-")))
        for user, entry in entries
        if user.status != "unknown"  # forgotten after PRESENCE_RETENTION_SECONDS: the user was offline
    ]
    # Always in the same order, or two of these programs could wait for each other's rows.
    database.cursor().executemany(UPSERT, sorted(rows))
    database.commit()


def step(database: psycopg.Connection) -> None:
    try:
        changes = group.poll()
    except Missed as missed:
        everybody = read_all(client)
        while users := list(islice(everybody, 1000)):
            save(database, ((user, missed.last_id) for user in users))
        group.ack(missed)
    else:
        newest = {change.user_id: change.id for change in changes}
        save(database, ((user, newest[user.user_id]) for user in read(client, newest)))
        group.ack(changes)


def main() -> None:
    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: signals.append(received))
    while not signals:
        try:
            with psycopg.connect(os.environ.get("DATABASE_URL", "postgresql://127.0.0.1/app")) as database:
                database.execute(TABLE)
                database.commit()
                while not signals:
                    step(database)
        except (RedisError, psycopg.Error) as error:
            print("waiting:", error, file=sys.stderr)
            time.sleep(1)


if __name__ == "__main__":
    main()
