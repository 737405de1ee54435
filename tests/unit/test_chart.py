"""The Helm chart agrees with the program. `.ci/chart` renders it and validates the result; that needs helm."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import openim_presence
from shared.settings import Settings

CHART = Path(__file__).parents[2] / "deploy" / "chart"
TEMPLATES = "".join(path.read_text() for path in (CHART / "templates").iterdir())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
SETTINGS = {f"PRESENCE_{name.upper()}" for name in Settings.model_fields}


def test_the_chart_has_the_version_of_the_program() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == openim_presence.__version__


def test_the_alerts_are_those_of_the_folder_above() -> None:
    assert (CHART / "alerts.yml").samefile(CHART.parent / "alerts.yml")


def test_the_settings_exist_and_are_said_in_one_place() -> None:
    fixed = set(re.findall(r"name: (PRESENCE_[A-Z_]+), value", TEMPLATES))
    assert fixed | VALUES["settings"].keys() <= SETTINGS
    assert fixed == set(SCHEMA["properties"]["settings"]["propertyNames"]["not"]["enum"])


def test_every_value_is_used_and_known_to_the_schema() -> None:
    jsonschema.validate(VALUES, SCHEMA)
    used = {path.split(".")[0] for path in re.findall(r"\.Values\.([\w.]+)", TEMPLATES)} | {"worker", "receiver"}
    assert used == VALUES.keys() == SCHEMA["properties"].keys() - {"global"}


@pytest.mark.parametrize(
    "values",
    [
        {"replicas": 3},
        {"settings": {"PRESENCE_PORT": "10006"}},
        {"settings": {"REDIS_URL": "redis://redis"}},
        {"receiver": {"replicas": 0}},
        {"keda": {"enabled": "yes"}},
        {"networkPolicy": {"openim": {"podSelector": {}}}},
    ],
)
def test_a_wrong_value_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, SCHEMA)
