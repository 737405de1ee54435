"""Workers that compare presence with OpenIM by themselves."""

import asyncio
import json
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import openim as fakes
import pytest
from beside import PIDS, World, users
from redis import Redis
from support import Process, Server, Worker, on_one_server, wait_until

import openim_presence
from shared.events import Event
from shared.events import encode as encode_event
from shared.observe.metrics import of_snapshot
from shared.observe.poller import Poller
from shared.openim.client import OpenIM
from shared.queue import enqueue_encoded, open_queue
from shared.reports import Report, encode
from shared.settings import Settings
from shared.truth import comparison, ledger
from shared.truth.comparison import Comparison
from worker.gateways import note
from worker.reconcile import doubtful, reconciler
from worker.reconcile.doubtful import Doubtful
from worker.reconcile.reconciler import Reconciler, _NotOurs
from worker.reconcile.state import State

pytestmark = on_one_server


@pytest.fixture
def world(redis: Redis, server: Server) -> Iterator[World]:
    with fakes.serving(*PIDS) as openim:
        world = World(redis, server.url, openim)
        world.come(users("a", 300), gateway=0)
        world.come(users("b", 300), gateway=1)
        world.call_back(minutes_ago=2)
        openim.users = [*users("a", 300), *users("b", 300), *users("offline", 50)]
        report(world)
        yield world


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes rounds take no time, and every step look."""
    monkeypatch.setattr(reconciler, "SHARE", 0.0)
    monkeypatch.setattr(reconciler, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(reconciler, "URGENT_SECONDS", 0.0)


def report(world: World, seconds_ago: float = 0) -> None:
    """Reports as a receiver does."""
    at = time.time_ns() // 1_000_000 - int(seconds_ago * 1000)
    world.redis.hset("presence-receivers", "r", encode(Report("r", at, at, 0, 0)))


def of(world: World, seconds: int = 3600, **settings: Any) -> Reconciler:
    given = {"openim_api": world.openim.url, "openim_secret": fakes.SECRET, "reconcile_seconds": seconds}
    return Reconciler(Settings(redis_url=world.url, **{**given, **settings}), threading.Event())


def step(world: World, *workers: Reconciler) -> list[str]:
    """One step of each worker. The users about whom OpenIM was asked."""
    world.openim.asked.clear()

    async def stepping(worker: Reconciler) -> None:
        settings = worker._settings
        async with OpenIM(settings.openim_api, settings.openim_secret, settings.openim_admin) as openim:
            await worker.step(openim)

    for worker in workers:
        asyncio.run(stepping(worker))
    world.work()
    return asked(world)


def asked(world: World) -> list[str]:
    """The users in the questions, without those who were only witnesses, in the order of the questions."""
    questions = [question["userIDs"] for path, question in world.openim.asked if path.endswith("token_detail")]
    return list(dict.fromkeys(user for question in questions for user in question))


def drop(world: World, *names: str) -> None:
    """The users leave, and their callbacks are lost."""
    world.go(names)
    world.call_back(lost=True)


def found(world: World) -> ledger.Ledger:
    return ledger.read(world.redis.hgetall("presence-reconcile"))


def ambiguous(world: World) -> dict[str, float]:
    """presence_ambiguous_batches_total, by outcome."""
    families = of_snapshot(Poller(Settings(redis_url=world.url)).poll())
    samples = [sample for family in families for sample in family.samples if "ambiguous" in sample.name]
    return {sample.labels["outcome"]: sample.value for sample in samples}


def differing(world: World) -> list[str]:
    ours, truth = world.ours(), world.truth()
    return [user for user in ours.keys() | truth.keys() if ours.get(user) != truth.get(user)]


def next_period(world: World) -> None:
    world.redis.hset("presence-reconcile", "round:began_ms", 0)


@pytest.mark.usefixtures("quick")
def test_everybody_is_compared_at_first_and_then_in_every_tenth_period(world: World) -> None:
    worker = of(world)
    drop(world, "a7")
    assert len(step(world, worker)) == 650
    assert found(world).found == {
        **{"compared": 650, "ghost": 1, "missing": 0, "platforms": 0, "unknown": 0, "skipped": 0},
    }
    assert found(world).put_right["ghost"] == 1
    assert world.ours() == world.truth()
    assert step(world, worker) == []  # the period is not over
    sizes = []
    for _ in range(10):
        next_period(world)
        sizes.append(len(step(world, worker)))
    assert sizes == [599] * 9 + [650]


def test_a_round_fills_its_period(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    now, at = time.monotonic(), []

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return now

    worker = of(world, seconds=1000)
    began = now
    monkeypatch.setattr(reconciler, "time", Clock)
    monkeypatch.setattr(reconciler.asyncio, "sleep", sleep)
    start = worker._now_ms()
    monkeypatch.setattr(worker, "_now_ms", lambda: start + int((now - began) * 1000))
    original = worker._state.done

    def done(count: int, again: Sequence[str] = ()) -> None:
        at.append(now - began)
        original(count, again)

    monkeypatch.setattr(worker._state, "done", done)
    monkeypatch.setattr(worker, "_look", lambda _: original_look())

    async def original_look() -> None:
        """Nothing was lost."""

    step(world, worker)
    assert [round(each) for each in at] == [0, 300, 600, 900]


@pytest.mark.usefixtures("quick")
def test_another_worker_goes_on_where_one_was_killed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    first, second = of(world), of(world)
    drop(world, "a1", "b299")

    async def dies(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(first, "_pause", dies)
    with pytest.raises(Killed):
        step(world, first)
    one = set(asked(world))
    with pytest.raises(_NotOurs):
        step(world, second)  # it may come back
    world.redis.delete("presence-reconciler")
    rest = step(world, second)
    # 200 were done; witnesses are asked about in every question.
    assert len(one) + len(rest) <= 650 + 16
    assert {*one, *rest} == {*users("a", 300), *users("b", 300), *users("offline", 50)}
    assert found(world).found["compared"] == 650
    assert found(world).found["ghost"] == 2
    assert world.ours() == world.truth()


@pytest.mark.usefixtures("quick")
def test_whom_a_killed_worker_was_to_close_at_the_end_another_closes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    monkeypatch.setattr(comparison, "AGAIN_SECONDS", 0.1)
    first, second = of(world), of(world)
    drop(world, "a1", "a2", "b299")
    world.redis.delete("presence-gateways")  # without witnesses sessions are closed at the end of the round
    pauses = 0

    async def dies(*_: object) -> None:
        nonlocal pauses
        pauses += 1
        if pauses == 3:  # everybody but the last fifty has been asked about
            raise Killed

    monkeypatch.setattr(first, "_pause", dies)
    with pytest.raises(Killed):
        step(world, first)
    assert world.ours() != world.truth()
    world.redis.delete("presence-reconciler")
    assert len(step(world, second)) == 50 + 3
    assert world.ours() == world.truth()
    assert (found(world).found["compared"], found(world).found["ghost"]) == (650, 3)
    assert not world.redis.exists("presence-reconcile-todo")


@pytest.mark.usefixtures("quick")
def test_the_list_of_a_worker_that_was_killed_as_it_made_it_is_made_anew(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    first, second = of(world), of(world)

    def dies(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(first._state, "write_round", dies)
    with pytest.raises(Killed):
        step(world, first)
    world.redis.delete("presence-reconciler")
    step(world, second)
    assert found(world).found["compared"] == 650


@pytest.mark.usefixtures("quick")
def test_a_worker_that_loses_the_turn_after_the_last_question_loses_no_result(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = of(world)
    world.redis.delete("presence-gateways")  # without witnesses sessions are closed at the end of the round
    drop(world, "a1")
    state = worker._state
    done = state.done

    def lose(count: int, again: Sequence[str] = ()) -> None:
        done(count, again)
        if not state.left():
            world.redis.set("presence-reconciler", "another")

    monkeypatch.setattr(worker._state, "done", lose)
    with suppress(_NotOurs):
        step(world, worker)
    world.work()
    assert found(world).found["ghost"] == 1
    assert world.ours() == world.truth()


@pytest.mark.usefixtures("quick")
def test_another_worker_writes_the_result_of_one_that_was_killed_after_its_last_question(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    async def dies(_: object) -> None:
        raise Killed

    first, second = of(world), of(world)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Comparison, "finish", dies)
        step(world, first)
    world.redis.delete("presence-reconciler")
    step(world, second)
    assert found(world).found["compared"] == 650


def test_a_worker_keeps_the_turn_while_it_lists_very_many_users(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciler, "TURN_SECONDS", 0.4)
    monkeypatch.setattr(reconciler, "STEP_SECONDS", 0.05)
    monkeypatch.setattr(reconciler, "SHARE", 0.0)
    read_all, lacked = openim_presence.read_all, 0

    def slow(*arguments: Any) -> Iterator[Any]:
        nonlocal lacked
        for user in read_all(*arguments):
            time.sleep(0.002)
            lacked += not world.redis.exists("presence-reconciler")
            yield user

    monkeypatch.setattr(openim_presence, "read_all", slow)
    step(world, of(world))
    assert not lacked


def test_a_worker_that_loses_the_turn_while_it_lists_users_adds_no_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one has begun the list anew."""
    read_all, todo = openim_presence.read_all, Settings().keys.reconcile_todo

    def loses(*arguments: Any) -> Iterator[Any]:
        for number, user in enumerate(read_all(*arguments)):
            if number == 300:
                world.redis.set("presence-reconciler", "another")
                world.redis.delete(todo)
            yield user

    monkeypatch.setattr(openim_presence, "read_all", loses)
    with pytest.raises(_NotOurs):
        step(world, of(world))
    assert world.redis.llen(todo) == 0


@pytest.mark.usefixtures("quick")
def test_at_debug_each_correction_is_logged_with_its_reason(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "worker.reconcile")
    drop(world, "a7")
    world.come(["a8"], platform_id=5)
    world.call_back(lost=True)
    step(world, of(world))
    lines = {record.user_id: record.getMessage() for record in caplog.records if hasattr(record, "user_id")}
    assert lines == {
        "a7": "ghost: online on platforms 1 here, on none in OpenIM; closed: witnessed",
        "a8": "platforms: online on platforms 1 here, on 1,5 in OpenIM; opened: witnessed",
    }
    assert fakes.TOKEN not in caplog.text


@pytest.mark.usefixtures("quick")
def test_it_may_only_measure(world: World) -> None:
    drop(world, "a7")
    step(world, of(world, reconcile_fix=0))
    assert found(world).found["ghost"] == 1
    assert not any(found(world).put_right.values())
    assert "a7" in world.ours()


@pytest.mark.usefixtures("quick")
def test_users_of_a_gateway_that_is_gone_are_compared_at_once(world: World) -> None:
    worker = of(world)
    step(world, worker)
    world.openim.restart(1, pid=9)
    world.come(users("b", 3), gateway=1)
    world.call_back(minutes_ago=1)
    about = step(world, worker)
    assert {user for user in about if user.startswith("b")} == set(users("b", 300))
    assert len(about) < 320  # the others were witnesses
    assert world.ours() == world.truth()
    assert step(world, worker) == []


@pytest.mark.usefixtures("quick")
def test_after_our_receivers_were_away_all_who_are_online_are_compared_at_once_and_then_all_users(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "worker.reconcile")
    worker = of(world)
    step(world, worker)
    report(world, seconds_ago=20)
    assert step(world, worker) == []
    drop(world, *users("a", 20))
    world.come(["new"], gateway=1)
    world.call_back(lost=True)
    world.openim.users.append("new")
    report(world)
    caplog.clear()
    step(world, worker)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "compared 600 users with OpenIM at once, since callbacks may be lost",
        "compared 651 users with OpenIM",  # for those who came; the period is not over
    ]
    assert world.ours() == world.truth()
    assert step(world, worker) == []


@pytest.mark.usefixtures("quick")
def test_a_round_that_runs_is_finished_before_the_one_for_all_users_begins(world: World) -> None:
    worker = of(world)
    step(world, worker)
    next_period(world)
    pause = worker._pause

    async def lose(*arguments: Any) -> None:
        """The receivers come back in the middle of the round."""
        report(world, seconds_ago=20)
        await pause(*arguments)
        report(world)
        await pause(*arguments)
        worker._pause = pause  # type: ignore[method-assign]

    worker._pause = lose  # type: ignore[method-assign]
    step(world, worker)
    assert found(world).found["compared"] == 600
    assert len(step(world, worker)) == 650
    assert found(world).found["compared"] == 650
    assert step(world, worker) == []


@pytest.mark.usefixtures("quick")
def test_after_a_batch_was_lost_all_who_are_online_are_compared_at_once(world: World) -> None:
    worker = of(world)
    world.go(["a9"])  # if only online callbacks are known to come, a missing number shows nothing
    world.call_back()
    step(world, worker)
    drop(world, "a5")
    world.come(["later"])
    world.call_back(minutes_ago=0.5)
    assert "a5" in {*step(world, worker)}
    assert world.ours() == world.truth()


@pytest.mark.usefixtures("quick")
def test_after_callbacks_came_late_all_who_are_online_are_compared_at_once(world: World) -> None:
    """Their gateway had no place for others: of a batch of which a part came, no number is missing."""
    worker = of(world)
    step(world, worker)
    drop(world, "a5")
    assert step(world, worker) == []
    sent = time.time_ns() // 1_000_000 - 2 * 60_000
    late = Event("a6", "callbackAfterUserOnlineCommand", sent, "", 1, "", "p_7_1", sent + 3500, "late", "10.0.0.1")
    note(world.redis, Settings().keys, [late], sent + 3500)
    assert "a5" in {*step(world, worker)}
    assert world.ours() == world.truth()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("jobs", [1, 2])
def test_who_came_and_went_in_one_batch_is_asked_about_after_two_seconds(world: World, jobs: int) -> None:
    """After three changes within a second, only OpenIM knows the last one. The callbacks of one batch may come in two
    jobs: with a real OpenIM, some came 16 ms after the others.
    """
    worker = of(world)
    step(world, worker)
    world.come(["new", "new"])
    world.go(["new", "new"])
    batch = [
        Event(
            each.user_id,
            f"callbackAfterUser{each.step}Command",
            now,
            "",
            1,
            "",
            each.operation_id,
            now,
            f"{number}",
            "10.0.0.1",
        )  # type: ignore[arg-type]
        for now in [time.time_ns() // 1_000_000]
        for number, each in enumerate(world.openim.im.second_passes(0))
    ]
    world.redis.hset("presence-reconcile", "round:began_ms", int(time.time() * 1000))
    batch.sort(key=lambda event: event.kind, reverse=True)  # online first
    middle = sum(event.kind == "online" for event in batch) if jobs == 2 else len(batch)
    for part in (batch[:middle], batch[middle:]):
        if part:
            enqueue_encoded(open_queue(world.redis, Settings()), [encode_event(event) for event in part], 1)
    world.work(reconcile_seconds=3600, openim_api=world.openim.url, openim_secret=fakes.SECRET)
    assert "new" in world.ours()  # as the rule reads it: four times online, twice offline
    assert step(world, worker) == []  # too soon
    about = wait_until(lambda: step(world, worker))
    assert "new" in about
    assert len(about) < 20
    assert world.ours() == world.truth()
    assert found(world).doubtful == {"asked": 1, "dropped": 0}
    assert ambiguous(world) == {"kept": 1, "closed": 0, "asked": 1, "dropped": 0}
    assert step(world, worker) == []


def heard(world: World, user: str, seconds_ago: float) -> None:
    """The user's last event came then."""
    world.redis.hset(f"presence:{user}", "updated_at", time.time_ns() // 1_000_000 - int(seconds_ago * 1000))


@pytest.mark.usefixtures("quick")
def test_who_is_in_doubt_and_had_another_event_just_now_is_asked_about_again(world: World) -> None:
    """As with a real one: within a second one connection came back and another left, and then the user went on."""
    worker, waiting = of(world), Doubtful(world.redis, Settings().keys)
    step(world, worker)
    drop(world, "a7")
    waiting.add(["a7"], time.time_ns() // 1_000_000 - doubtful.WAIT_MS)
    heard(world, "a7", seconds_ago=0)
    assert "a7" in step(world, worker)
    assert "a7" in world.ours()
    assert found(world).doubtful["asked"] == 0
    assert step(world, worker) == []
    wait_until(lambda: "a7" in step(world, worker))
    assert world.ours() == world.truth()
    assert found(world).doubtful == {"asked": 1, "dropped": 0}


@pytest.mark.usefixtures("quick")
def test_who_is_in_doubt_is_closed_even_if_no_gateway_is_known(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "AGAIN_SECONDS", 0.1)
    worker, waiting = of(world), Doubtful(world.redis, Settings().keys)
    step(world, worker)
    world.redis.delete("presence-gateways")
    drop(world, "a7", "a8")
    world.openim.im._record["a8"] = {1}  # so OpenIM is asked twice
    waiting.add(["a7", "a8"], time.time_ns() // 1_000_000 - doubtful.WAIT_MS)
    step(world, worker)
    assert world.ours() == world.truth()
    assert found(world).doubtful == {"asked": 2, "dropped": 0}


@pytest.mark.usefixtures("quick")
def test_who_differed_and_had_an_event_just_now_is_asked_about_again(world: World) -> None:
    worker = of(world)
    drop(world, "a7")
    heard(world, "a7", seconds_ago=1)
    step(world, worker)
    assert found(world).found["skipped"] == 1
    assert "a7" in world.ours()
    wait_until(lambda: "a7" in step(world, worker))  # the period is not over
    assert world.ours() == world.truth()


def test_who_comes_into_doubt_again_during_a_question_is_asked_about_again(redis: Redis) -> None:
    waiting = Doubtful(redis, Settings().keys)
    waiting.add(["a", "b"], 1000)
    assert waiting.take(3000, most=10) == ["a", "b"]
    waiting.add(["b"], 2500)
    waiting.asked(["a", "b"], 3000)
    assert waiting.take(4500, most=10) == ["b"]


@pytest.mark.usefixtures("quick")
def test_too_many_doubtful_users_are_left_to_the_next_period(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doubtful, "MOST", 5)
    worker, now = of(world), time.time_ns() // 1_000_000
    step(world, worker)
    waiting = Doubtful(world.redis, Settings().keys)
    waiting.add(users("a", 3), now - doubtful.WAIT_MS)
    waiting.add(users("b", 30), now - doubtful.WAIT_MS)
    assert len({*step(world, worker)} & {*users("a", 3), *users("b", 2)}) == 5
    waiting.add(["a9"], now - 2 * doubtful.LONGEST_MS)
    assert step(world, worker) == []
    assert found(world).doubtful == {"asked": 5, "dropped": 29}


def test_a_network_that_loses_all_the_time_does_not_keep_openim_busy(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reconciler, "SHARE", 0.0)
    monkeypatch.setattr(reconciler, "LOOK_SECONDS", 0.0)
    worker = of(world)
    step(world, worker)
    caplog.set_level(logging.INFO, "worker.reconcile")
    for _ in range(3):
        report(world, seconds_ago=20)
        worker._looked_at = 0.0
        step(world, worker)
        report(world)
        step(world, worker)
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "compared 600 users with OpenIM at once, since callbacks may be lost",
        "compared 650 users with OpenIM",
    ]
    assert reconciler.URGENT_SECONDS == 30.0


@pytest.mark.usefixtures("quick")
def test_openim_is_away_and_back(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    worker = of(world)
    drop(world, "a7")
    world.openim.secret = "another"
    for _ in range(3):
        step(world, worker)
        worker._rests_until = 0.0
    assert [record.getMessage() for record in caplog.records if "not available" in record.getMessage()] == [
        f"OpenIM's API, {world.openim.url}, is not available: OpenIM at {world.openim.url} cannot be asked: "
        "PRESENCE_OPENIM_SECRET is not its secret"
    ]
    assert "PRESENCE_OPENIM_SECRET" in found(world).trouble
    assert not found(world).compared_at_ms
    assert "a7" in world.ours()
    world.openim.secret = fakes.SECRET
    step(world, worker)
    assert not found(world).trouble
    assert world.ours() == world.truth()
    assert "is back after" in caplog.text
    assert fakes.SECRET not in caplog.text
    assert fakes.TOKEN not in caplog.text


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("seed", range(3))
def test_after_churn_of_which_half_was_lost_nothing_differs(world: World, seed: int) -> None:
    """Users come, leave, are kicked and move; callbacks are lost, and at the end a gateway restarts."""
    chance, worker = random.Random(seed), of(world)
    world.go(["a9"])
    world.call_back()
    step(world, worker)
    open_ = {user: connections.copy() for user, connections in world.connections.items()}
    for _ in range(30):
        for _ in range(20):
            user = f"{chance.choice('abc')}{chance.randrange(300)}"
            connections = open_.setdefault(user, [])
            if connections and chance.random() < 0.5:
                world.openim.im.close(connections.pop(chance.randrange(len(connections))))
            else:
                platform, token = chance.choice([1, 1, 5]), chance.choice(["", "", "new"])
                connections.append(world.openim.im.open(user, platform, token, chance.randrange(2)))
        world.call_back(lost=chance.random() < 0.5)
    world.openim.users = [*users("a", 300), *users("b", 300), *users("c", 300)]
    assert world.ours() != world.truth()
    report(world, seconds_ago=20)
    step(world, worker)
    report(world)
    next_period(world)
    step(world, worker)
    assert world.ours() == world.truth()
    for key in world.redis.scan_iter("presence:*"):  # a correction is as fresh as a callback
        world.redis.hset(key, "updated_at", time.time_ns() // 1_000_000 - 10_000)
    world.openim.restart(1, pid=9)
    world.come(["a1"], gateway=1)
    world.call_back(minutes_ago=0.9)
    step(world, worker)
    # Corrected at once: all but those whose move to that gateway was lost, whom OpenIM showed online as we did.
    assert len(differing(world)) < 10
    next_period(world)
    step(world, worker)
    assert world.ours() == world.truth()


def test_a_worker_does_it_by_itself(world: World, tmp_path: Path, keep: Callable[[Process], Process]) -> None:
    drop(world, "a7", "b7")
    settings = {"openim_api": world.openim.url, "openim_secret": fakes.SECRET, "reconcile_seconds": "2"}
    workers = [Worker(tmp_path, world.url, f"worker{number}", **settings) for number in range(2)]
    for each in workers:
        keep(each)
    wait_until(lambda: world.ours() == world.truth(), what="ghosts to go")
    drop(world, "a8")
    wait_until(lambda: world.ours() == world.truth(), what="another ghost to go")
    assert found(world).put_right["ghost"] == 3
    wait_until(lambda: any("compared 6" in each.text() for each in workers), what="a comparison of all")
    for each in workers:
        assert each.stop() == 0
        assert fakes.TOKEN not in each.text()
    assert not world.redis.exists("presence-reconciler")


def test_what_is_remembered_is_read_as_it_was_written(redis: Redis) -> None:
    redis.hset("presence-reconcile", mapping={"round:number": "soon", "tally:ghost": 3, "seen": "{"})
    last, tally, seen = State(redis, Settings().keys).read()
    assert (last.number, tally.ghost, seen) == (0, 3, None)
    assert json.dumps(tally.as_json())
