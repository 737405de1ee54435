# mirror.py
import sys
import time
from itertools import islice

import psycopg
from redis import Redis
from redis.exceptions import RedisError

from openim_presence import ConsumerGroup, Missed, read, read_all

DATABASE = "postgresql://127.0.0.1/app"
TAKE_OVER_SECONDS = 60
UPSERT = """
INSERT INTO presence (user_id, status, changed_at, ms, n)
VALUES (%(user_id)s, %(status)s, %(changed_at)s, %(ms)s, %(n)s)
ON CONFLICT (user_id) DO UPDATE
SET status = excluded.status, changed_at = excluded.changed_at, ms = excluded.ms, n = excluded.n
WHERE (excluded.ms, excluded.n) > (presence.ms, presence.n)
"""

client = Redis.from_url("redis://127.0.0.1:6379/0")
group = ConsumerGroup(client, "mirror", "mirror-1", take_over_seconds=TAKE_OVER_SECONDS)
database = psycopg.connect(DATABASE)


def save(entries):
    """entries: each user, and the id of an entry of presence-changes that was there before the user was read."""
    rows = []
    for user, entry in entries:
        ms, n = map(int, entry.split("-"))
        if user.status != "unknown":  # forgotten after PRESENCE_RETENTION_SECONDS: the user was offline
            rows.append(
                {"user_id": user.user_id, "status": user.status, "changed_at": user.changed_at, "ms": ms, "n": n}
            )
    # Always in the same order, or two of these programs could wait for each other's rows.
    rows.sort(key=lambda row: row["user_id"])
    database.cursor().executemany(UPSERT, rows)
    database.commit()


def mirror(changes):
    newest = {change.user_id: change.id for change in changes}
    save((user, newest[user.user_id]) for user in read(client, newest))


def mirror_everybody(last_id):
    everybody = read_all(client)
    while users := list(islice(everybody, 1000)):
        save((user, last_id) for user in users)


def step():
    try:
        changes = group.poll()
    except Missed as missed:
        mirror_everybody(missed.last_id)
        group.ack(missed)
    else:
        mirror(changes)
        group.ack(changes)


while True:
    try:
        step()
    except RedisError as error:
        print("waiting for Redis:", error, file=sys.stderr)
        time.sleep(1)
