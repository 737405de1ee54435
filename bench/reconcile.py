"""A new installation is filled from OpenIM: `presence reconcile --all` with 100,000 users online, and then `--online`.

`python bench/reconcile.py` prints how long each takes, and what OpenIM is asked. OpenIM is the stand-in of the tests,
which answers from a table: a real one takes longer.
"""

import json
import subprocess
import sys
import time
from collections import Counter
from multiprocessing import Pipe, Process
from multiprocessing.connection import Connection

from rig import Server, Worker, bench, wait_until

USERS = 100_000


def serve(pipe: Connection) -> None:
    import openim

    with openim.serving(7) as fake:
        fake.users = [f"user{number}" for number in range(USERS)]
        for user in fake.users:
            fake.im.open(user, 1)
        pipe.send(fake.url)
        while pipe.recv():
            pipe.send(Counter(fake.paths()))
            fake.asked.clear()


def reconcile(server: Server, url: str, which: str) -> dict[str, int]:
    environment = {"PRESENCE_REDIS_URL": server.url, "PRESENCE_OPENIM_API": url, "PRESENCE_OPENIM_SECRET": "openIM123"}
    command = [sys.executable, "-c", "from shared.cli import main; main()", "reconcile", which, "--json"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    with bench() as (directory, programs):
        server = Server(directory)
        programs.append(server)
        ours, theirs = Pipe()
        openim = Process(target=serve, args=(theirs,), daemon=True)
        openim.start()
        url = ours.recv()
        programs.append(Worker(directory, server.url))
        for which in ("--all", "--online"):
            began = time.perf_counter()
            tally = reconcile(server, url, which)
            compared = time.perf_counter() - began
            wait_until(lambda: server.client.hget("presence-stats", "users_online") == b"%d" % USERS, 300)
            applied = time.perf_counter() - began
            assert tally["compared"] == USERS
            ours.send(True)
            print(f"reconcile {which}: {compared:.1f} s, all of it applied after {applied:.1f} s; {tally}")
            print(f"  OpenIM was asked {dict(ours.recv())}")
        ours.send(False)
        openim.join(10)


if __name__ == "__main__":
    main()
