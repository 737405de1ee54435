"""Every command's help says how it is used."""

import re
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from shared.cli import cli
from shared.settings import Settings


def commands(group: click.Group, *path: str) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)


@pytest.mark.parametrize("path", [(), *commands(cli)], ids=" ".join)
def test_every_command_has_an_example_that_runs_it(path: tuple[str, ...]) -> None:
    text = CliRunner().invoke(cli, [*path, "--help"]).output
    _, _, examples = re.split("(Examples?:\n)", text, maxsplit=1)
    assert " ".join(("presence", *path)) in examples
    assert set(re.findall(r"\bPRESENCE_[A-Z_]+", text)) <= {
        f"PRESENCE_{name.upper()}" for name in Settings.model_fields
    }


@pytest.mark.parametrize(
    ("command", "ports"),
    [
        ("up", {"PRESENCE_PORT", "PRESENCE_ADMIN_PORT"}),
        ("receiver", {"PRESENCE_PORT", "PRESENCE_ADMIN_PORT"}),
        ("worker", {"PRESENCE_WORKER_ADMIN_PORT"}),
    ],
)
def test_a_program_names_the_settings_of_its_ports(command: str, ports: set[str]) -> None:
    text = CliRunner().invoke(cli, [command, "--help"]).output
    assert set(re.findall(r"\bPRESENCE_[A-Z_]*PORT\b", text)) == ports


def test_the_commands_are_listed_by_task_and_completion_is_mentioned() -> None:
    text = CliRunner().invoke(cli, ["--help"]).output
    assert [text.index(f"\n  {name} ") for name in cli.commands]
    assert text.index("Run it:") < text.index("See who is online:") < text.index("Try it:")
    assert "_PRESENCE_COMPLETE=bash_source" in text


@pytest.mark.parametrize("group", [[], ["failed"]], ids=["presence", "presence failed"])
def test_no_command_is_listed_with_half_a_sentence(group: list[str]) -> None:
    listed = CliRunner().invoke(cli, [*group, "--help"]).output.partition("Options:")[2]
    assert "failed" in listed
    assert "..." not in listed
