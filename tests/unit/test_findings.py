"""What the doctor concludes from facts: for each code, facts that cause it and no other."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shared.doctor import configuration, journal, receiver, servers, system
from shared.doctor.codes import CODES, GROUPS
from shared.doctor.findings import Check, Examination, Finding, Item
from shared.doctor.journal import JournalFacts
from shared.doctor.receiver import Answers, Certificate, ReceiverFacts
from shared.doctor.servers import ServerFacts
from shared.gateways.view import Gateway, Gateways
from shared.observe import health
from shared.observe.counters import Stats
from shared.observe.readiness import Readiness
from shared.observe.snapshot import PresenceState, QueueState, Server, Snapshot, Worker
from shared.reports import Report
from shared.settings import Settings, load

ROOT = Path(__file__).parents[2]
NOW = 1_795_000_000_000
LOCAL = {"PRESENCE_HOST": "127.0.0.1"}
OPEN = {"PRESENCE_HOST": "0.0.0.0", "PRESENCE_CALLBACK_PATH": "/s3cret"}
INFO = {"redis_version": "7.2.4", "role": "master", "maxmemory": 0, "maxmemory_policy": "noeviction"}
CONFIG = {"protected-mode": "yes", "bind": "*", "appendonly": "yes", "appendfsync": "everysec"}
SERVER = ServerFacts("queue and presence", "redis://redis:6379/0", infos=(INFO,), config=CONFIG)
JOURNAL = JournalFacts("/journal", exists=True, file_system="ext4", free_bytes=2**40)
RECEIVER = ReceiverFacts(Readiness(journal="/journal"), "", "http://127.0.0.1:10006", "ours", "", Answers(0.001, 0, 0))
GATEWAY = Gateway("10.0.0.7", 71, "live", NOW - 3_600_000, NOW - 1000, 1000, 100, 0)
SNAPSHOT = Snapshot(
    NOW,
    QueueState(
        Server(version="valkey 8"),
        at_ms=NOW,
        workers=(Worker("w", "idle", NOW - 9000, NOW - 1000),),
        receivers=(Report("r", NOW - 500, NOW - 500, 0, 0),),
        gateways=Gateways((GATEWAY,), 100, 0),
    ),
    PresenceState(Server(version="valkey 8"), Stats({"applied": 10}, users_online=5)),
)


def of_settings(**environment: str) -> Iterator[Item]:
    return configuration.look(load({**LOCAL, **{f"PRESENCE_{name}": value for name, value in environment.items()}}))


def of_server(*, fsync: str = "everysec", **changes: Any) -> Iterator[Item]:
    return servers.look(replace(SERVER, **changes), journal_fsync=fsync)


def of_info(**changes: Any) -> Iterator[Item]:
    return of_server(infos=({**INFO, **changes},), has_replicas="connected_slaves" in changes)


def of_journal(*, here: Readiness | None = None, settings: Settings | None = None, **changes: Any) -> Iterator[Item]:
    return journal.look(replace(JOURNAL, **changes), settings or Settings(), here, is_expected=True)


def of_receiver(elsewhere: int = 0, gateways: int = 1, **changes: Any) -> Iterator[Item]:
    return receiver.look(replace(RECEIVER, **changes), elsewhere=elsewhere, gateways=gateways, now=NOW / 1000)


def of_system(settings: Settings | None = None, before: Snapshot = SNAPSHOT, **changes: Any) -> Iterator[Item]:
    queue = {name: value for name, value in changes.items() if name in QueueState.__dataclass_fields__}
    stats = {name: value for name, value in changes.items() if name not in queue}
    now = replace(
        SNAPSHOT,
        queue=replace(SNAPSHOT.queue, **queue),
        presence=replace(SNAPSHOT.presence, stats=replace(SNAPSHOT.presence.stats, **stats)),
    )
    return system.look(before, now, settings or Settings(), None)


def gateways(*processes: Gateway) -> Gateways:
    return Gateways(processes, 100, 0)


REPLICA = {"ip": "10.0.0.9", "port": 6379, "state": "online", "lag": 0}

#: A code, the facts, and words from the finding.
CASES: list[tuple[str, Iterator[Item], str]] = [
    ("P002", of_settings(ADMIN_PORT="10006"), "PRESENCE_PORT and PRESENCE_ADMIN_PORT are both 10006"),
    ("P002", of_settings(WORKER_ADMIN_PORT="10016"), "PRESENCE_ADMIN_PORT and PRESENCE_WORKER_ADMIN_PORT"),
    ("P003", of_settings(HOST="0.0.0.0"), "from anyone"),
    ("P004", of_settings(ALLOWED_NETWORKS="10.0.0.0/8,0.0.0.0/0"), "PRESENCE_ALLOWED_NETWORKS has 0.0.0.0/0"),
    ("P004", of_settings(ALLOWED_NETWORKS="10.0.0.0/8", TRUSTED_PROXIES="::/0"), "PRESENCE_TRUSTED_PROXIES has ::/0"),
    ("P005", of_settings(HOST="0.0.0.0", BASIC_AUTH="openim:geheim"), "PRESENCE_BASIC_AUTH"),
    ("P006", of_settings(FORWARD_URL="http://localhost:10006/x"), "own port"),
    ("P007", of_settings(PORT="0"), "PRESENCE_PORT is 0"),
    ("P008", of_settings(RETENTION_SECONDS="60"), "is 60"),
    ("P010", of_server(error="refused"), "redis://redis:6379/0, does not answer: refused"),
    ("P011", of_server(error="WRONGPASS", is_refusal=True), "WRONGPASS"),
    ("P013", of_info(maxmemory_policy="allkeys-lru"), "allkeys-lru"),
    ("P015", of_info(redis_version="6.2.9"), "is Redis 6.2.9"),
    ("P015", of_server(role="queue", infos=({**INFO, "redis_version": "6.0.16"},)), "is Redis 6.0.16"),
    ("P016", of_info(redis_version="7.0.0"), "7.0.0"),
    ("P016", of_server(breaks_protocol=True), "breaks the protocol"),
    ("P018", of_info(redis_mode="sentinel"), "redis+sentinel://"),
    ("P020", of_server(denied={"BLMOVE": "no rights", "INFO": "none"}), "BLMOVE, INFO: no rights"),
    ("P021", of_server(is_open=True, config={**CONFIG, "protected-mode": "no"}), "no password"),
    ("P023", of_server(skew_ms=-2500), "2.5 s ahead of"),
    ("P024", of_info(connected_slaves=0), "without a replica"),
    ("P025", of_info(connected_slaves=1, slave0={**REPLICA, "lag": 6}), "10.0.0.9:6379, which is online, 6 s behind"),
    ("P025", of_info(connected_slaves=1, slave0={**REPLICA, "state": "wait_bgsave"}), "wait_bgsave"),
    ("P026", of_server(fsync="always"), "appendfsync everysec"),
    ("P030", of_journal(trouble="Read-only file system"), "/journal cannot be written: Read-only"),
    ("P031", of_journal(lock_trouble="No locks available"), "No locks available"),
    ("P032", of_journal(damaged=("a.damaged",)), "a.damaged"),
    ("P033", of_journal(unreadable=("a", "b", "c", "d", "e")), "a, b, c and 2 more"),
    ("P034", of_journal(file_system="nfs4"), "nfs4"),
    ("P035", of_journal(file_system="tmpfs"), "in memory"),
    ("P035", of_journal(file_system="overlay"), "container"),
    ("P036", of_journal(free_bytes=2**30, settings=Settings(processes=2)), "may take 2,147,483,648"),
    ("P037", of_journal(free_bytes=2**20), "1,048,576 bytes are free"),
    ("P038", of_journal(waiting_files=1, waiting_bytes=132), "132 bytes"),
    ("P041", of_receiver(reach="nobody", detail="Connection refused"), "10006: Connection refused"),
    ("P042", of_receiver(reach="another program", detail="status 200"), "status 200"),
    ("P042", of_receiver(reach="wrong credentials"), "PRESENCE_BASIC_AUTH"),
    ("P043", of_receiver(answers=Answers(0.04, 0.4, 10)), "40 ms on average: a gateway delivers at most 50"),
    ("P044", of_receiver(answers=Answers(0.01, 1.5, 150)), "1.5 of 2 senders wait at a time, with 150 callbacks"),
    ("P045", of_receiver(certificate=Certificate(trouble="certificate has expired")), "has expired"),
    ("P046", of_receiver(certificate=Certificate(NOW / 1000 + 3 * 86_400)), "expires in 3 days"),
    ("P048", of_receiver(readiness=None, frozen="frozen", reach="silent", answers=None), "frozen"),
    ("P050", of_system(workers=()), "no worker"),
    ("P060", of_settings(ONLINE_LEASE_SECONDS="600"), "is 600"),
    ("P061", of_system(Settings(online_lease_seconds=1800), gateways=Gateways()), "3.8.2 or later"),
    ("P062", of_system(Settings(online_lease_seconds=1800), users_online=26_001), "26,001 users are online"),
    ("P063", of_system(clock_ahead=1), "more than a minute"),
    (
        "P068",
        of_system(
            before=replace(SNAPSHOT, presence=replace(SNAPSHOT.presence, stats=Stats(clock_ahead=7))), clock_ahead=7
        ),
        "7 callbacks",
    ),
    ("P064", of_system(gateways=gateways(replace(GATEWAY, lead_ms=7000))), "10.0.0.7, pid 71 is 7.0 s ahead"),
    ("P064", of_system(gateways=gateways(replace(GATEWAY, lead_ms=-30_000))), "30.0 s behind, or"),
    ("P065", of_system(gateways=gateways(replace(GATEWAY, lost=2, missing=((7, 8),)))), "2 batches"),
    ("P066", of_system(gateways=gateways(replace(GATEWAY, state="silent"))), "is silent"),
]


@pytest.mark.parametrize(("code", "items", "words"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_each_trouble_is_found_and_no_other(code: str, items: Iterator[Item], words: str) -> None:
    (finding,) = (each for each in items if isinstance(each, Finding))
    assert finding.code == code
    assert words in finding.seen
    assert "geheim" not in finding.seen


@pytest.mark.parametrize(
    "items",
    [
        of_settings(),
        of_settings(HOST="10.0.0.1", ADMIN_HOST="127.0.0.1", PORT="10016", CALLBACK_PATH="/s3cret"),
        of_settings(ALLOWED_NETWORKS="10.0.0.0/8", ONLINE_LEASE_SECONDS="1800", FORWARD_URL="http://business:10006"),
        of_server(),
        of_info(connected_slaves=1, slave0=REPLICA),
        of_server(role="queue", infos=({**INFO, "redis_version": "6.2.0"},)),
        of_server(is_open=True, config={**CONFIG, "protected-mode": "no", "bind": "127.0.0.1 -::1"}),
        of_server(config=None),
        of_journal(),
        of_journal(exists=False),
        of_journal(here=Readiness(journal="/journal"), waiting_files=2, waiting_bytes=264),
        of_journal(trouble="Permission denied", is_foreign=True),
        of_receiver(),
        of_receiver(readiness=None, reach="nobody"),
        of_receiver(readiness=None, reach="another program", elsewhere=2),
        of_receiver(reach="not from here"),
        of_receiver(gateways=2, answers=Answers(0.01, 1.5, 150)),
        of_receiver(certificate=Certificate(NOW / 1000 + 30 * 86_400)),
        of_system(),
        of_system(Settings(online_lease_seconds=1800), users_online=26_000),
    ],
)
def test_what_is_well_is_no_finding(items: Iterator[Item]) -> None:
    assert not [each for each in items if isinstance(each, Finding)]


@pytest.mark.parametrize(
    ("items", "state", "words"),
    [
        (of_server(config=None), "cannot tell", "CONFIG GET"),
        (of_server(error="refused"), "cannot tell", "does not answer"),
        (of_journal(exists=False), "cannot tell", "no receiver runs"),
        (journal.look(replace(JOURNAL, exists=False), Settings(), None, is_expected=False), "not used", "elsewhere"),
        (of_journal(here=Readiness(journal="/other")), "cannot tell", "/other"),
        (of_journal(trouble="Permission denied", is_foreign=True), "cannot tell", "another user's"),
        (of_journal(file_system=""), "cannot tell", "does not say"),
        (of_receiver(readiness=None, reach="nobody"), "not used", "nothing listens"),
        (of_receiver(readiness=None, reach="nobody", elsewhere=1), "not used", "others report"),
        (of_receiver(reach="not from here"), "cannot tell", "PRESENCE_ALLOWED_NETWORKS"),
        (of_receiver(), "not used", "PRESENCE_TLS_CERT is not set"),
        (of_receiver(answers=None), "cannot tell", "no callback yet"),
        (of_system(), "not used", "PRESENCE_ONLINE_LEASE_SECONDS is 0"),
        (of_system(gateways=Gateways()), "not used", "none of OpenIM 3.8.2"),
        (of_system(gateways=gateways(replace(GATEWAY, lost=None, note="two share it"))), "cannot tell", "two share it"),
        (of_system(server=Server(error="refused")), "cannot tell", "does not answer"),
    ],
)
def test_not_used_and_cannot_tell_are_said_with_the_reason(items: Iterator[Item], state: str, words: str) -> None:
    checks = [each for each in items if isinstance(each, Check)]
    assert any(words in each.because for each in checks if each.state == state), checks


def test_the_worst_comes_first_and_nothing_twice() -> None:
    items = [Finding("P021", "open"), Finding("P014", "x"), Check("a"), Finding("P010", "y"), Finding("P014", "x")]
    found = Examination.of(NOW, items)
    assert [each.code for each in found.findings] == ["P010", "P014", "P021"]
    assert found.as_json() | {"findings": [], "checks": []} == {
        "at": NOW,
        "errors": 1,
        "warnings": 1,
        "notes": 1,
        "findings": [],
        "checks": [],
    }
    assert Examination.of(NOW, [Finding("P014", "x")]).fails("warning")
    assert not Examination.of(NOW, [Finding("P014", "x")]).fails("error")


def test_every_code_is_used_and_every_code_used_is_known() -> None:
    sources = [
        *(ROOT / "shared" / "doctor").rglob("*.py"),
        ROOT / "shared" / "cli" / "doctor.py",
        Path(health.__file__),
    ]
    used = {code for path in sources if path.name != "codes.py" for code in re.findall(r'"(P\d{3})"', path.read_text())}
    assert used == set(CODES)
    assert {code[:3] for code in CODES} == set(GROUPS)


def test_each_code_of_the_doctors_own_is_tested_here_or_with_real_programs() -> None:
    of_health = set(re.findall(r'"(P\d{3})"', Path(health.__file__).read_text()))
    others = ("integration/test_doctor.py", "integration/test_doctor_openim.py", "unit/test_openim_config.py")
    together = "".join((ROOT / "tests" / name).read_text() for name in others)
    tested = {code for code, *_ in CASES} | set(re.findall(r"P\d{3}", together))
    assert set(CODES) - of_health <= tested


def test_the_page_lists_every_code_as_it_is() -> None:
    page = (ROOT / "docs" / "doctor.md").read_text()
    rows = [line for line in page.splitlines() if re.match(r"\| P\d{3} ", line)]
    assert rows == [f"| {code} | {each.severity} | {each.why} | {each.mend} |" for code, each in CODES.items()]
    for name in dict.fromkeys(GROUPS.values()):
        assert f"\n### {name}\n" in page
