"""`presence doctor`: is everything set up correctly and, if not, how can it be fixed?"""

import json
import sys
import time
from pathlib import Path

import click

from shared.cli.running import load_settings
from shared.cli.text import moment, safe
from shared.doctor.codes import CODES, SEVERITIES, Severity
from shared.doctor.findings import Examination, Finding
from shared.errors import SettingsError
from shared.observe.health import counted


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option(
    "--fail-on",
    type=click.Choice(SEVERITIES),
    default="error",
    show_default=True,
    help="The least severe finding that makes the exit code 1.",
)
@click.option(
    "--openim-config",
    type=click.Path(exists=True, path_type=Path),
    help="OpenIM's config directory, or a ConfigMap's file: does it call back this receiver?",
)
def doctor(as_json: bool, fail_on: Severity, openim_config: Path | None) -> None:
    """Looks for what is wrong or risky here, and says why it matters and how to fix it.

    Looks at the settings, both Redis servers, the receiver and the journal on this machine, workers, leases, OpenIM's
    gateways and, with PRESENCE_OPENIM_API, OpenIM's API. Changes nothing; ends within 10 s whatever hangs. Run it where
    a receiver runs, with its settings: elsewhere it says what it could not see. Exit code 0: no error was found;
    1: there is one.

    \b
    Examples:
      presence doctor
      presence doctor --json --fail-on warning
      presence doctor --openim-config /opt/open-im-server/config
    """
    from shared.doctor.probes.examination import (
        examine,
    )  # YAML and HTTP clients, which no other command should wait for

    try:
        found = examine(load_settings(), openim_config)
    except SettingsError as error:
        found = Examination.of(time.time_ns() // 1_000_000, [Finding("P001", str(error))])
    click.echo(json.dumps(found.as_json()) if as_json else _as_text(found))
    sys.exit(1 if found.fails(fail_on) else 0)


def _as_text(found: Examination) -> str:
    summary = ", ".join(counted(found.count(severity), severity) for severity in SEVERITIES)
    lines = [f"{summary:<36} {moment(found.at_ms)}"]
    for each in found.findings:
        code = CODES[each.code]
        lines += [
            "",
            f"{each.severity} {each.code}: {safe(each.seen)}",
            f"  why:  {code.why}",
            f"  mend: {code.mend}",
        ]
    lines.append("")
    for state in ("cannot tell", "not used"):
        lines += [
            f"{state}: {safe(each.what)}, because {safe(each.because)}" for each in found.checks if each.state == state
        ]
    checked = ", ".join(safe(each.what) for each in found.checks if each.state == "checked")
    return "\n".join([*lines, f"looked at: {checked or 'nothing else'}"])
