# who.py
import sys
from datetime import UTC, datetime

from redis import Redis

from openim_presence import read

client = Redis.from_url("redis://127.0.0.1:6379/0")


def is_online(user):
    (found,) = read(client, [user])
    return found.status == "online"


def who_is_online(users):
    return [user.user_id for user in read(client, users) if user.status == "online"]


def last_seen(user):
    (found,) = read(client, [user])
    if found.status == "offline":
        return datetime.fromtimestamp(found.changed_at / 1000, UTC).isoformat("T", "seconds")
    return "now" if found.status == "online" else "never"


users = sys.argv[1:]
print(is_online(users[0]), who_is_online(users), *map(last_seen, users))
