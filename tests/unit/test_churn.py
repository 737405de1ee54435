"""The users that `presence send` plays."""

import random
from collections import Counter, defaultdict

import model
import pytest

from shared.cli import churn
from shared.events import Event

USERS = [f"user{number}" for number in range(200)]


def play(*lives: churn.Life) -> dict[str, list[list[Event]]]:
    """The events of each user, batch by batch."""
    of_user: dict[str, list[list[Event]]] = defaultdict(list)
    numbers = iter(range(10**6))
    for seq, batch in enumerate(churn.batches(USERS, random.Random(1), lives or churn.LIVES), 10**6):
        of_batch: dict[str, list[Event]] = defaultdict(list)
        for step, user_id, platform_id, operation_id in batch:
            command = f"callbackAfterUser{step}Command"
            event_id = str(next(numbers))
            of_batch[user_id].append(
                Event(user_id, command, seq, "", platform_id, "", operation_id, seq, event_id)  # type: ignore[arg-type]
            )
        for user_id, events in of_batch.items():
            of_user[user_id].append(events)
    return of_user


def test_everybody_ends_offline_with_a_batch_that_says_nothing_else() -> None:
    of_user = play()
    assert list(of_user) != USERS and sorted(of_user) == sorted(USERS)
    for batches in of_user.values():
        assert model.platforms(event for batch in batches for event in batch) == []
        assert {event.kind for event in batches[-1]} == {"offline"}


def test_it_is_known_before_how_many_callbacks_there_will_be() -> None:
    for users in (0, 1, 9, 64, 65, 200):
        assert churn.count(users) == sum(map(len, churn.batches(USERS[:users], random.Random(1))))


@pytest.mark.parametrize(
    ("life", "expected"),
    [
        (churn.comes_and_leaves, [[1], []]),
        (churn.is_woken_by_a_push, [[], [1], []]),
        (churn.changes_the_network, [[1], [1], [1], []]),
        (churn.comes_back_at_once, [[1], [1], [1], []]),
        (churn.is_kicked, [[1], [1], [1], []]),
        (churn.moves_to_another_gateway, [[1], [1], [], [1], []]),
        (churn.has_two_platforms, [[1], [1, 3], [3], []]),
    ],
)
def test_each_life_is_read_as_it_is_lived(life: churn.Life, expected: list[list[int]]) -> None:
    batches = play(life)["user0"]
    known = [model.platforms(e for batch in batches[: n + 1] for e in batch) for n in range(len(batches))]
    assert known == expected


def test_most_batches_name_what_they_end_online_as_well() -> None:
    kinds = Counter(tuple(sorted({event.kind for event in batch})) for batches in play().values() for batch in batches)
    assert kinds["offline", "online"] > len(USERS) / 3
