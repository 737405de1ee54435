# push.py
import sys
import time

from redis import Redis
from redis.exceptions import RedisError

from openim_presence import ConsumerGroup, Missed, read

AWAY_SECONDS = 30
LATE_SECONDS = 3600  # nobody wants a push about anything older, on the first start or after a long outage
POLL_SECONDS = 1.0  # a push may be this late
TIMERS = "push-timers"

client = Redis.from_url("redis://127.0.0.1:6379/0", decode_responses=True)
group = ConsumerGroup(client, "push", "push-1")


def push(user):
    print("push to", user, flush=True)  # your work


def set_timers(changes):
    pipeline = client.pipeline()
    for change in changes:
        if change.status == "offline":
            pipeline.zadd(TIMERS, {change.user_id: change.changed_at + AWAY_SECONDS * 1000})
        else:
            pipeline.zrem(TIMERS, change.user_id)
    pipeline.execute()


def fire():
    now = time.time() * 1000
    due = dict(client.zrangebyscore(TIMERS, "-inf", now, withscores=True, start=0, num=1000))
    for user in read(client, due):
        # The hash shows a return before the feed does.
        is_away = user.status == "offline" and user.changed_at + AWAY_SECONDS * 1000 <= now
        if is_away and now - due[user.user_id] < LATE_SECONDS * 1000:
            push(user.user_id)
        client.zrem(TIMERS, user.user_id)


def step():
    try:
        changes = group.poll(POLL_SECONDS)
        set_timers(changes)
        group.ack(changes)
    except Missed as missed:
        group.ack(missed)  # users who went offline in missed changes get no push
    fire()


while True:
    try:
        step()
    except RedisError as error:
        print("waiting for Redis:", error, file=sys.stderr)
        time.sleep(1)
