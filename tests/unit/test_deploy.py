"""The alert rules and the dashboard ask for metrics that exist, and every alert is in the documents."""

import json
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from receiver.metrics import Counts, State, of_receiver
from shared.observe.metrics import of_snapshot
from shared.observe.readiness import Readiness
from shared.observe.snapshot import PresenceState, QueueState, Server, Snapshot
from shared.settings import load
from shared.truth.ledger import Ledger

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"] for rule in group["rules"]
]
DASHBOARD = json.loads((DEPLOY / "dashboard.json").read_text())
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
METRICS = (ROOT / "docs" / "metrics.md").read_text()


def exported() -> dict[str, set[str]]:
    """The names of all samples, and their labels."""
    counts = Counts()
    counts.accepted("command", "path", 0.0)
    numbers = {**counts.numbers(), "pushes ok": 1, "forwards ok": 1}
    families = [
        *of_receiver(State(1, numbers), Readiness()),
        *of_snapshot(Snapshot(1, QueueState(Server(), ledger=Ledger(1)), PresenceState(Server()))),
    ]
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


def queries() -> list[str]:
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return [rule["expr"] for rule in RULES] + panels


def test_every_metric_of_the_contract_is_exported() -> None:
    promised = {
        *("presence_callbacks_total", "presence_answer_seconds", "presence_journal_events", "presence_journal_bytes"),
        *("presence_journal_oldest_seconds", "presence_relay_pushes_total", "presence_redis_up"),
        *("presence_queue_jobs", "presence_queue_oldest_seconds", "presence_workers", "presence_failed_batches"),
        *("presence_events_total", "presence_changes_total", "presence_lag_seconds", "presence_users_online"),
        *("presence_log_lines_dropped_total", "presence_gateway_batches_total", "presence_gateways"),
        *("presence_clock_ahead_total", "presence_drift_users", "presence_reconciled_total"),
        *("presence_reconcile_age_seconds", "presence_ambiguous_batches_total"),
    }
    assert promised <= {re.sub("_(bucket|count|sum)$", "", name) for name in exported()}
    assert exported()["presence_callbacks_total"] == {"command", "shape", "outcome", "status"}


@pytest.mark.parametrize("query", queries())
def test_a_query_asks_for_what_there_is(query: str) -> None:
    names = set(re.findall(r"\bpresence_[a-z_]+\b", query))
    assert names <= exported().keys()
    assert names or "up{" in query
    labels = set(re.findall(r"([a-z_]+)=~?\"", query)) - {"job"}
    assert labels <= set().union(*(exported()[name] for name in names))


def test_every_metric_is_on_the_page_and_no_other() -> None:
    named = set(re.findall(r"`(presence_[a-z_]+)`", METRICS))
    assert named == {re.sub("_(bucket|count|sum)$", "", name) for name in exported()}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_says_where_to_read_on(rule: dict[str, Any]) -> None:
    assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"
    assert f"\n### {rule['alert']}\n" in OPERATIONS
    assert rule["annotations"]["summary"].endswith((".", "second."))
    assert rule["labels"]["severity"] in ("critical", "warning")


def test_the_operations_page_explains_no_alert_that_is_gone() -> None:
    assert set(re.findall(r"^### (Presence\w+)$", OPERATIONS, re.MULTILINE)) == {rule["alert"] for rule in RULES}


def test_the_jobs_of_the_rules_are_scraped() -> None:
    jobs = {each["job_name"] for each in yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]}
    assert {job for query in queries() for job in re.findall(r'job="([^"]+)"', query)} == jobs


def test_panels_have_titles_and_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        assert panel["title"]
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        taken |= cells


def test_images_are_named_by_version_and_watched_by_dependabot() -> None:
    compose = (ROOT / "docker-compose.yml").read_text()
    dockerfile = (ROOT / "Dockerfile").read_text()
    named = re.findall(r"^\s*(?:FROM|image:) ([a-z][^\s$]+)", f"{dockerfile}\n{compose}", re.MULTILINE)
    assert len(named) == 6
    assert [each for each in named if not re.search(r":v?\d+(\.\d+)*(-[a-z]+)?(@sha256:\w+)?$", each)] == []
    assert not re.search(r"pip install .*rq-dashboard(?!==)", compose)
    updates = yaml.safe_load((ROOT / ".github" / "dependabot.yml").read_text())["updates"]
    assert {"docker", "docker-compose"} <= {each["package-ecosystem"] for each in updates}


# systemd


def unit(name: str) -> ConfigParser:
    parser = ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]  # it would make them lower case
    parser.read(DEPLOY / "systemd" / name)
    return parser


def test_systemd_understands_the_units(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("there is no systemd-analyze")
    for path in (DEPLOY / "systemd").iterdir():
        # It looks for the program, which is here in another place.
        here = path.read_text().replace("/opt/openim-presence/bin", str(Path(sys.executable).parent))
        (tmp_path / path.name).write_text(here)
    units = ["./presence-receiver@10016.service", "./presence-worker@1.service"]
    ran = subprocess.run(
        ["systemd-analyze", "verify", *units], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    complaints = [line for line in ran.stderr.splitlines() if "presence" in line]
    assert (complaints, ran.returncode) == ([], 0)


def settings_of(name: str, instance: str) -> dict[str, str]:
    """What the unit sets."""
    given = unit(name)["Service"]["Environment"].replace("%i", instance)
    return {variable: value for variable, _, value in (each.partition("=") for each in given.split())}


@pytest.mark.parametrize(
    ("name", "program"), [("presence-receiver@.service", "receiver"), ("presence-worker@.service", "worker")]
)
def test_a_unit_starts_its_program_with_settings_that_it_takes(name: str, program: str) -> None:
    service = unit(name)["Service"]
    assert service["ExecStart"] == f"/opt/openim-presence/bin/presence {program}"
    given = settings_of(name, "1")
    assert all(load({variable: value}) != load({}) for variable, value in given.items())
    section = OPERATIONS.partition("### On a plain server")[2].partition("\n### ")[0]
    assert all(f"`{variable}`" in section for variable in given)
    # Compose stops its containers with these, too.
    grace = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"][program]["stop_grace_period"]
    assert service["TimeoutStopSec"] + "s" == grace


def test_the_journal_is_where_the_unit_may_write() -> None:
    journal = Path(settings_of("presence-receiver@.service", "10016")["PRESENCE_JOURNAL_DIR"])
    assert journal.parent == Path("/var/lib") / unit("presence-receiver@.service")["Service"]["StateDirectory"]


def test_the_units_differ_only_where_the_programs_do() -> None:
    """What protects one protects the other, too."""
    receiver, worker = (
        dict(unit(name)["Service"]) for name in ("presence-receiver@.service", "presence-worker@.service")
    )
    different = {name for name in {*receiver, *worker} if receiver.get(name) != worker.get(name)}
    assert different == {"Environment", "ExecStart", "LimitNOFILE", "StateDirectory", "Type", "User"}
