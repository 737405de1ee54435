# consumer.py
import sys
import time

from redis import Redis
from redis.exceptions import RedisError

from openim_presence import ConsumerGroup, Missed

TAKE_OVER_SECONDS = 60  # after this time another consumer takes over what one was given and has not acknowledged

client = Redis.from_url("redis://127.0.0.1:6379/0")
group = ConsumerGroup(client, "mailer", "mailer-1", take_over_seconds=TAKE_OVER_SECONDS)


def work(change):
    print(change.id, change.user_id, change.status, flush=True)  # your work


def read_everybody():
    print("read everybody", flush=True)  # your work: read all users


def step():
    try:
        changes = group.poll()
    except Missed as missed:
        read_everybody()
        group.ack(missed)
    else:
        for change in changes:
            work(change)
        group.ack(changes)


while True:
    try:
        step()
    except RedisError as error:
        print("waiting for Redis:", error, file=sys.stderr)
        time.sleep(1)
