"""What counts as unhealthy, and in which words."""

from dataclasses import replace
from typing import Any

import pytest

from shared.gateways.view import Gateway, Gateways
from shared.observe import health
from shared.observe.readiness import Readiness, combine, readiness_of
from shared.observe.snapshot import PresenceState, QueueState, Server, Snapshot, Worker
from shared.reports import Report
from shared.settings import Settings

NOW = 1_700_000_000_000
SERVER = Server(version="valkey 8.1.0", used_bytes=1)
REPORT = Report("host:1", NOW - 500, NOW - 1000, 0, 0)
GONE = replace(REPORT, name="b:2", at_ms=NOW - 90_000)
WORKER = Worker("w", "idle", NOW - 60_000, NOW - 1000)
WELL = Snapshot(NOW, QueueState(SERVER, workers=(WORKER,), receivers=(REPORT,)), PresenceState(SERVER))
HERE = Readiness()
TWO = Settings(redis_url="redis://u:geheim@a/0", queue_url="redis://b/0")


def queue(**changes: Any) -> Snapshot:
    return replace(WELL, queue=replace(WELL.queue, **changes))


def test_a_system_that_is_well_has_neither_problems_nor_notes() -> None:
    assert health.problems(WELL, Settings(), HERE) == health.notes(WELL) == []


def test_a_gateway_that_ends_again_and_again_is_one_line() -> None:
    ended = [Gateway("10.0.0.7", pid, "restarted", NOW - 9000, NOW - 1000, 1000, 9, 0) for pid in (9, 8, 7)]
    other = replace(ended[0], peer="10.0.0.8")
    notes = health.notes(queue(at_ms=NOW, gateways=Gateways((*ended, other), 9, 0)))
    assert notes == [
        "OpenIM's gateway at 10.0.0.7, pid 9, has ended 3 times within an hour and another runs: it reported nothing "
        "about its users",
        "OpenIM's gateway at 10.0.0.8, pid 9, has ended and another runs: it reported nothing about its users",
    ]


def test_an_outage_comes_before_what_follows_from_it() -> None:
    down = replace(HERE, redis="down", journal_events=7)
    first, second = health.coded_problems(queue(server=Server(error="refused")), TWO, down)
    assert (first.code, second.code) == ("P010", "P049")


@pytest.mark.parametrize(
    ("snapshot", "words"),
    [
        (queue(workers=()), "no worker is alive"),
        (queue(workers=(replace(WORKER, state="suspended"),)), "rq resume"),
        (queue(receivers=()), "no receiver has reported"),
        (queue(receivers=(replace(REPORT, at_ms=NOW - 16_000),)), "no receiver has reported"),
        (
            queue(receivers=(REPORT, replace(REPORT, name="b:2", at_ms=NOW - 90_000, events=3))),
            "b:2 has been silent for 90 s; its journal had 3",
        ),
        (queue(receivers=(replace(REPORT, trouble="the disk is full"),)), "host:1 refuses events"),
        (
            queue(receivers=(replace(REPORT, events=4, watermark_ms=NOW - 40_000),)),
            "journal of host:1, the oldest for 40 s",
        ),
        (queue(jobs=2, oldest_ms=NOW - 31_000), "the oldest for 31 s"),
        (queue(failed=2), "presence failed list"),
        (queue(troubles=("LLEN rq:queue:presence: WRONGTYPE",)), "rq:queue:presence: WRONGTYPE"),
        (queue(denied=("INFO: no right", "presence-sweep: no right")), "not let us read INFO: no right (and 1 more)"),
        (queue(server=replace(SERVER, used_bytes=95, max_bytes=100)), "uses 95%"),
        (queue(server=replace(SERVER, max_bytes=100, evicts=True)), "noeviction"),
        (queue(server=Server(error="refused")), "the queue's Redis, redis://b/0, does not answer: refused"),
        (replace(WELL, presence=PresenceState(Server(error="refused"))), "presence, redis://a/0, does not answer"),
        (replace(WELL, presence=PresenceState(SERVER, troubles=("presence-stats: WRONGTYPE",))), "presence-stats"),
    ],
)
def test_each_trouble_is_named_alone(snapshot: Snapshot, words: str) -> None:
    (problem,) = health.problems(snapshot, TWO)
    assert words in problem
    assert "geheim" not in problem


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"trouble": "the disk is full"}, "not ready: the disk is full"),
        ({"redis": "down", "journal_events": 1234}, "cannot push: 1,234 events"),
        ({"damaged_files": 1}, "1 damaged"),
    ],
)
def test_the_receiver_on_this_machine_is_heard(change: dict[str, Any], words: str) -> None:
    (problem,) = health.problems(WELL, TWO, replace(HERE, **change))
    assert words in problem


def test_one_server_that_does_not_answer_is_one_problem() -> None:
    gone = Server(error="refused")
    assert len(health.problems(Snapshot(NOW, QueueState(gone), PresenceState(gone)), Settings())) == 1


@pytest.mark.parametrize(
    "snapshot",
    [
        queue(retrying=1),
        queue(silent_workers=(replace(WORKER, host="h", pid=7, seen_ms=NOW - 20_000),)),
        queue(leases_held="no receiver reports"),
        queue(receivers=(REPORT, GONE)),
        queue(server=replace(SERVER, on_disk=False)),
        queue(jobs=5, oldest_ms=NOW - 20_000),
    ],
)
def test_what_is_no_problem_does_not_make_it_unwell(snapshot: Snapshot) -> None:
    assert health.problems(snapshot, Settings()) == []


def test_what_a_receiver_says_is_read_back() -> None:
    said = Readiness("the disk is full", "/journal", "down", 3, 400, 1.5, 1, 2)
    assert readiness_of(said.as_json()) == said
    assert said.as_json()["status"] == "not ready"


def test_a_receiver_of_another_release_is_understood() -> None:
    said = {"status": "ready", "trouble": "", "redis": "up", "journal_events": 3, "of_tomorrow": []}
    assert readiness_of(said) == Readiness(journal_events=3)


@pytest.mark.parametrize("said", [[], {}, {"status": "ready"}, {"trouble": "", "redis": "?", "journal_events": 1}])
def test_another_program_s_page_is_not_taken_for_it(said: object) -> None:
    with pytest.raises(ValueError, match=r"receiver|redis"):
        readiness_of(said)


def test_several_processes_are_as_well_as_the_worst_of_them() -> None:
    both = combine(
        [Readiness(journal="/j", journal_events=1, damaged_files=1), Readiness(redis="down", damaged_files=1)]
    )
    assert both == Readiness(journal="/j", redis="down", journal_events=1, damaged_files=1, processes=2)
    assert combine([Readiness(), "process 7 does not answer"]).trouble == "process 7 does not answer"
    assert combine(["process 7 does not answer"]).redis == "down"


def test_a_worker_that_froze_is_named() -> None:
    (note,) = health.notes(queue(silent_workers=(replace(WORKER, host="h", pid=7, seen_ms=NOW - 20_000),)))
    assert note.startswith("a worker has been silent for 20 s, host h, pid 7: ")
