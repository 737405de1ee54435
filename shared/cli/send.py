"""`presence send`: plays OpenIM."""

import asyncio
import json
import os
import random
import ssl
import sys
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

import click

from shared.addresses import check_address
from shared.cli import churn
from shared.cli.openim import SHAPES, Request, Step, request
from shared.cli.running import load_settings
from shared.cli.text import safe
from shared.observe.here import url_host

if TYPE_CHECKING:
    import aiohttp  # and in the functions: it would make every `presence` command take half as long again to start

#: What a run plays, for each user.
SCRIPTS: dict[str, tuple[Step, ...]] = {
    "offline": ("Offline",),
    "online": ("Online",),
    "kickoff": ("KickOff",),
    "session": ("Online", "Offline"),
}
REORDER_WINDOW = 50
TIMEOUT_SECONDS = 5  # OpenIM's own, as shipped


@dataclass
class Tally:
    """The answers that came back. seconds: the time that each took."""

    answers: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    accepted: int = 0

    def percentile_ms(self, percent: float) -> float:
        ordered = sorted(self.seconds)
        return round(ordered[int((len(ordered) - 1) * percent / 100)] * 1000, 2) if ordered else 0.0


@click.command()
@click.option("--url", help="As in OpenIM's configuration; the default is the receiver on this machine.")
@click.option("--shape", type=click.Choice(list(SHAPES)), default="v3.8", show_default=True, help="The OpenIM to play.")
@click.option(
    "--event",
    type=click.Choice(list(SCRIPTS)),
    help="What happens to each user; the default is a login and a logout. session: the same or, with v3.8, users who "
    "come and go as phones do.",
)
@click.option("--seq", type=click.IntRange(0, 2**63 - 1), help="The seq of all callbacks; the default is the time.")
@click.option("--users", type=click.IntRange(1), default=1, show_default=True, help="How many, user1 to userN.")
@click.option("--user", "names", multiple=True, help="One user by name; may be repeated.")
@click.option("--rate", type=click.FloatRange(0), default=0, help="Callbacks a second; 0 is as fast as it goes.")
@click.option("--duplicates", type=click.IntRange(0, 100), default=0, help="Percentage that is sent twice.")
@click.option("--reorder", is_flag=True, help="Send in another order than that of the seqs.")
@click.option("--connections", type=click.IntRange(1, 256), default=2, show_default=True, help="How many at a time.")
@click.option("--json", "as_json", is_flag=True, help="The result as one JSON object.")
def send(
    url: str | None,
    shape: str,
    event: str | None,
    seq: int | None,
    users: int,
    names: tuple[str, ...],
    rate: float,
    duplicates: int,
    reorder: bool,
    connections: int,
    as_json: bool,
) -> None:
    """Plays OpenIM: sends callbacks as one of its releases would.

    It sends two at a time, as a gateway of OpenIM 3.7 and later does. The exit code is 1 if any was not accepted.
    Without --event, each user logs in and out. Without --url, it sends to the receiver that PRESENCE_HOST,
    PRESENCE_PORT, PRESENCE_CALLBACK_PATH, PRESENCE_BASIC_AUTH and PRESENCE_TLS_CERT describe.

    \b
    Examples:
      presence send --user alice --event online
      presence send --url http://HOST:10006/callbackExample --users 1000 --event session --rate 200
    """
    trusted = None
    if url is None:
        url, trusted = _this_machine()
    if not url.startswith(("http://", "https://")):
        raise click.UsageError("--url: must begin with http:// or https://")
    try:
        check_address(url)
    except ValueError as error:
        raise click.UsageError(f"--url: {error}") from None
    url, headers = _without_credentials(url)
    if names and users > 1:
        raise click.UsageError("either --users or --user")
    everybody = names or tuple(f"user{number}" for number in range(1, users + 1))
    if event == "session" and shape == "v3.8":
        if seq is not None:
            raise click.UsageError("--seq cannot be used with --event session of v3.8, which needs many different seqs")
        total, requests = churn.count(len(everybody)), _churn(url, everybody)
    else:
        steps = SCRIPTS[event or "session"]
        total, requests = len(everybody) * len(steps), _requests(url, shape, steps, everybody, seq)
    requests = _doubled(requests, duplicates)
    if reorder:
        requests = _shuffled(requests)
    started = time.monotonic()
    with click.progressbar(length=total, label="sending", file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:
        tally = asyncio.run(_send_all(requests, connections, rate, bar.update, trusted, headers))
    _report(tally, time.monotonic() - started, as_json)
    if tally.accepted != sum(tally.answers.values()):
        sys.exit(1)


def _this_machine() -> tuple[str, Path | None]:
    """Where the receiver of these settings listens, and the certificate that it must show."""
    config = load_settings()
    user, _, password = config.basic_auth.partition(":")
    credentials = f"{quote(user, '')}:{quote(password, '')}@" if user else ""
    scheme = "https" if config.tls_cert else "http"
    where = f"{credentials}{url_host(config.host)}:{config.port}{config.callback_path}"
    return f"{scheme}://{where}/callbackExample", config.tls_cert


def _without_credentials(url: str) -> tuple[str, dict[str, str]]:
    """The URL, and the header that Go makes of `user:password@` in it: in UTF-8, while aiohttp uses Latin-1."""
    parts = urlsplit(url)
    if not parts.username:
        return url, {}
    credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    header = {"Authorization": "Basic " + b64encode(credentials.encode()).decode()}
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl(), header


def _trust(certificate: Path) -> ssl.SSLContext:
    """Trusts this one certificate, whatever its name and signature."""
    context = ssl.create_default_context(cafile=certificate)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _requests(
    url: str, shape: str, steps: tuple[Step, ...], users: tuple[str, ...], seq: int | None
) -> Iterator[Request]:
    first = time.time_ns() // 1_000_000
    for place, step in enumerate(steps):
        for user in users:
            now = max(first + place, time.time_ns() // 1_000_000)
            yield request(shape, url, step, user, now if seq is None else seq)


def _churn(url: str, users: tuple[str, ...]) -> Iterator[Request]:
    seq = 0
    for batch in churn.batches(users, random.Random()):
        seq = max(seq + 2, time.time_ns() // 1_000_000)
        for step, user_id, platform_id, operation_id in batch:
            # In one callback of a hundred the clock of a real gateway had moved on.
            a_moment_later = random.randrange(100) == 0
            yield request("v3.8", url, step, user_id, seq + a_moment_later, platform_id, operation_id=operation_id)


def _doubled(requests: Iterator[Request], percent: int) -> Iterator[Request]:
    for each in requests:
        yield each
        if random.randrange(100) < percent:
            yield each


def _shuffled(requests: Iterator[Request]) -> Iterator[Request]:
    window: list[Request] = []
    for each in requests:
        window.append(each)
        if len(window) > REORDER_WINDOW:
            yield window.pop(random.randrange(len(window)))
    random.shuffle(window)
    yield from window


async def _send_all(
    requests: Iterator[Request],
    connections: int,
    rate: float,
    sent: Callable[[int], None],
    trusted: Path | None,
    headers: dict[str, str],
) -> Tally:
    import aiohttp

    tally = Tally()
    started = time.monotonic()
    count = 0

    async def sender(session: "aiohttp.ClientSession") -> None:
        nonlocal count
        for each in requests:  # the senders share the one iterator
            count += 1
            if rate and (early := started + (count - 1) / rate - time.monotonic()) > 0:
                await asyncio.sleep(early)
            await _send(session, each, tally)
            sent(1)

    timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
    connector = aiohttp.TCPConnector(limit=0, ssl=_trust(trusted) if trusted else True)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session:
        await asyncio.gather(*(sender(session) for _ in range(connections)))
    return tally


async def _send(session: "aiohttp.ClientSession", each: Request, tally: Tally) -> None:
    import aiohttp

    began = time.perf_counter()
    try:
        async with session.post(each.url, data=each.body, headers=each.headers) as response:
            body = (await response.read()).decode(errors="replace")
            answer = f"{response.status} {body}"
            tally.accepted += response.status == 200 and '"actionCode":0' in body
    except (aiohttp.ClientError, TimeoutError) as error:
        answer = f"no answer: {_reason(error)}"
    else:
        tally.seconds.append(time.perf_counter() - began)
    tally.answers[answer] += 1


def _reason(error: Exception) -> str:
    import aiohttp

    if isinstance(error, TimeoutError):
        return f"none within {TIMEOUT_SECONDS} s; what listens there is frozen or too busy, or a firewall is in between"
    if isinstance(error, aiohttp.ClientConnectorError) and error.os_error.errno:
        reason = os.strerror(error.os_error.errno) if error.os_error.errno > 0 else error.os_error.strerror
        return f"{error.host}:{error.port}: {reason}"
    if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError):
        return "the connection was closed instead"
    return str(error) or type(error).__name__


def _report(tally: Tally, seconds: float, as_json: bool) -> None:
    count = sum(tally.answers.values())
    times = {
        "p50": tally.percentile_ms(50),
        "p99": tally.percentile_ms(99),
        "max": tally.percentile_ms(100),
    }
    result = {
        "sent": count,
        "accepted": tally.accepted,
        "seconds": round(seconds, 3),
        "per_second": round(count / seconds, 1),
        "answer_ms": times,
        "answers": dict(tally.answers),
    }
    if as_json:
        click.echo(json.dumps(result))
        return
    for answer, number in tally.answers.most_common(10):
        click.echo(f"{number:>9} x {safe(answer)}")
    answers = f"; answers: p50 {times['p50']} ms, p99 {times['p99']} ms, max {times['max']} ms" if tally.seconds else ""
    click.echo(f"{tally.accepted} of {count} accepted in {seconds:.1f} s ({result['per_second']:.0f}/s){answers}")
