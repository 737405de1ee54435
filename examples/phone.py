# phone.py
import sys

from redis import Redis

from openim_presence import read

PHONES = {1, 2}  # OpenIM's ids: iOS and Android

client = Redis.from_url("redis://127.0.0.1:6379/0")

for user in read(client, sys.argv[1:]):
    print(user.user_id, not PHONES.isdisjoint(user.platforms))
