"""Users of OpenIM 3.8.2 or later who come and go as phones do, and the callbacks of its gateways.

For `presence send` and the benchmarks. Every user ends offline, and the last batch of each says only that.
"""

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from shared.cli.gateways import Callback, Connection, Gateways

GATEWAYS = 2
PLATFORMS = (1, 2, 5)
#: How many users come in each second.
COHORT = 64


class User(NamedTuple):
    """One user. gateway: the first one to which the user connects."""

    user_id: str
    platform_id: int
    gateway: int


#: The life of one user; a second passes at each `yield`.
Life = Callable[[Gateways, User], Iterator[None]]


def _opens(im: Gateways, user: User, token: str = "", gateway: int | None = None) -> Connection:
    return im.open(user.user_id, user.platform_id, token, user.gateway if gateway is None else gateway)


def comes_and_leaves(im: Gateways, user: User) -> Iterator[None]:
    phone = _opens(im, user)
    yield
    yield
    im.close(phone)
    yield


def is_woken_by_a_push(im: Gateways, user: User) -> Iterator[None]:
    im.close(_opens(im, user))
    yield
    yield from comes_and_leaves(im, user)


def changes_the_network(im: Gateways, user: User) -> Iterator[None]:
    wifi = _opens(im, user)
    yield
    mobile = _opens(im, user)
    yield
    im.close(wifi)
    yield
    im.close(mobile)
    yield


def comes_back_at_once(im: Gateways, user: User) -> Iterator[None]:
    phone = _opens(im, user)
    yield
    im.close(phone)
    phone = _opens(im, user)
    yield
    yield
    im.close(phone)
    yield


def is_kicked(im: Gateways, user: User) -> Iterator[None]:
    _opens(im, user, "old")
    yield
    phone = _opens(im, user, "new")
    yield
    yield
    im.close(phone)
    yield


def moves_to_another_gateway(im: Gateways, user: User) -> Iterator[None]:
    first = _opens(im, user)
    yield
    second = _opens(im, user, gateway=1 - user.gateway)
    yield
    im.close(first)
    yield
    yield
    im.close(second)
    yield


def has_two_platforms(im: Gateways, user: User) -> Iterator[None]:
    phone = _opens(im, user)
    yield
    desktop = _opens(im, user._replace(platform_id=3))
    yield
    im.close(phone)
    yield
    im.close(desktop)
    yield


#: Each user takes the next of these lives. In a third of them the user is in and out within a second, as in production.
LIVES: tuple[Life, ...] = (
    is_woken_by_a_push,
    comes_and_leaves,
    changes_the_network,
    is_woken_by_a_push,
    comes_back_at_once,
    is_kicked,
    is_woken_by_a_push,
    comes_and_leaves,
    moves_to_another_gateway,
    has_two_platforms,
)


def _goes_on(life: Iterator[None]) -> bool:
    return next(life, "over") != "over"


def batches(user_ids: Iterable[str], rng: random.Random, lives: Sequence[Life] = LIVES) -> Iterator[list[Callback]]:
    """The callbacks of the gateways, batch by batch, each shuffled."""
    im = Gateways(*rng.sample(range(1000, 100_000), GATEWAYS))  # new pids each time, and so new operationIDs
    users = (
        (User(user_id, PLATFORMS[number % len(PLATFORMS)], number % GATEWAYS), lives[number % len(lives)])
        for number, user_id in enumerate(user_ids)
    )
    running: list[Iterator[None]] = []
    while True:
        running += [life(im, user) for user, life in itertools.islice(users, COHORT)]
        if not running:
            return
        running = [life for life in running if _goes_on(life)]
        for gateway in range(GATEWAYS):
            if batch := im.second_passes(gateway):
                rng.shuffle(batch)
                yield batch


def count(users: int) -> int:
    """How many callbacks `batches` makes for this many users."""
    of_one = [sum(map(len, batches(["user"], random.Random(), [life]))) for life in LIVES]
    return sum(callbacks * len(range(number, users, len(LIVES))) for number, callbacks in enumerate(of_one))
