"""What a worker can tell of another one that is silent."""

from dataclasses import replace

import pytest

from worker.succession import Place, files_of, has_ended, hold

HERE = Place("host/boot", "net:[1]", "pid:[1]", "")
BOX = replace(HERE, files="/var/lib/docker/overlay2/abc/diff")

DOCKER = (
    "1062 862 0:83 / / rw,relatime master:423 - overlay overlay rw,lowerdir=/var/lib/docker/overlay2/l/A:"
    "/var/lib/docker/overlay2/l/B,upperdir=/var/lib/docker/overlay2/abc/diff,workdir=/var/lib/docker/overlay2/abc/work\n"
    "1063 1062 0:86 / /proc rw,nosuid - proc proc rw\n"
    "1064 1062 0:90 / /data rw - overlay overlay rw,lowerdir=/a,upperdir=/other,workdir=/w\n"
)


def test_a_process_of_this_machine_that_holds_its_name_has_not_ended() -> None:
    held = hold("alive")
    assert held and not has_ended("alive", HERE, HERE)
    held.close()
    assert has_ended("alive", HERE, HERE)


def test_who_looks_does_not_keep_the_name() -> None:
    assert has_ended("gone", HERE, HERE) and has_ended("gone", HERE, HERE)


@pytest.mark.parametrize(
    "there",
    [
        None,  # it could not say, or is `rq worker`
        replace(HERE, machine="other/boot"),
        replace(HERE, machine="host/boot before"),  # or another machine of the same name
        replace(HERE, network="net:[2]"),  # another container, which may be frozen
        replace(HERE, network="net:[2]", pids="pid:[2]"),
        replace(BOX, network="net:[2]", pids="pid:[2]"),
    ],
)
def test_nothing_is_said_of_a_process_that_cannot_be_seen(there: Place | None) -> None:
    assert not has_ended("unseen", there, HERE)
    assert not has_ended("unseen", HERE, None)


def test_a_container_that_is_started_again_has_nothing_left_of_before() -> None:
    before = replace(BOX, network="net:[2]", pids="pid:[2]")
    assert has_ended("unseen", before, BOX)
    assert not has_ended("unseen", replace(before, files="/var/lib/docker/overlay2/def/diff"), BOX)
    assert not has_ended("unseen", replace(before, pids=BOX.pids), BOX)


def test_a_place_is_read_as_it_was_written() -> None:
    here = Place.here()
    assert here and Place.parse(str(here)) == here and Place.parse(str(HERE)) == HERE
    assert Place.parse("") is Place.parse("of another form") is None


def test_a_container_is_known_by_where_its_files_are_written() -> None:
    assert files_of(DOCKER) == "/var/lib/docker/overlay2/abc/diff"
    assert files_of("27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n" + DOCKER.splitlines()[2]) == ""
