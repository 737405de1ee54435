"""Everything that the documents name exists, and everything that exists is named there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import recipes

from shared.cli import cli
from shared.settings import COMPOSE_ONLY, SECRETS, Settings

ROOT = Path(__file__).parents[2]
SETTINGS, COMMANDS, PROMISES = (
    (ROOT / "docs" / f"{name}.md").read_text() for name in ("settings", "commands", "promises")
)
OURS = {f"PRESENCE_{name.upper()}" for name in (*Settings.model_fields, *COMPOSE_ONLY)}
FILES = {f"PRESENCE_{name.upper()}_FILE" for name in SECRETS}


def named(text: str) -> set[str]:
    return set(re.findall(r"\bPRESENCE_[A-Z_]+\b", text))


def test_the_page_names_every_setting_and_no_other() -> None:
    assert named(SETTINGS) - FILES == OURS, "docs/settings.md and shared/settings.py differ"


def test_the_example_names_every_setting_and_no_other() -> None:
    assert named((ROOT / ".env.example").read_text()) - FILES == OURS, ".env.example and shared/settings.py differ"


@pytest.mark.parametrize("name", SECRETS)
def test_the_page_says_which_settings_may_come_from_a_file(name: str) -> None:
    paragraph = SETTINGS.split("|")[0]
    shown = "The two Redis URLs" if name in ("redis_url", "queue_url") else f"`PRESENCE_{name.upper()}`"
    assert shown in paragraph


@pytest.mark.parametrize("name", Settings.model_fields)
def test_the_page_has_the_default(name: str) -> None:
    default = Settings().model_dump(mode="json")[name]
    variable = f"PRESENCE_{name.upper()}"
    rows = [line for line in SETTINGS.splitlines() if line.startswith("|") and f"{variable}`" in line]
    assert rows, f"the table in docs/settings.md has no row for {variable}"
    shown = {"queue_url": "the same", "journal_dir": "./journal"}.get(name, str(default))
    shown = "empty" if default in ("", [], None) else shown
    assert shown in rows[0].split("|")[2]


def test_the_page_names_every_command_and_no_other() -> None:
    assert set(re.findall(r"`presence ([a-z]+)", COMMANDS)) == set(cli.commands)


def test_every_promise_names_a_test_that_exists() -> None:
    scenarios = (ROOT / "tests" / "faults" / "scenarios.py").read_text()
    table = PROMISES.split("Not promised")[0]
    promised = {name for row in table.splitlines()[5:] if row.startswith("|") for name in last_column(row)}
    existing = set(re.findall(r"^    ([a-z_]+),$", scenarios, re.MULTILINE))
    assert {name for name in promised if "/" not in name} == existing
    assert all((ROOT / name).exists() for name in promised if "/" in name)


def last_column(row: str) -> list[str]:
    return re.findall(r"`([a-z_/.]+)`", row.split("|")[-2])


def test_architecture_names_files_rooms_and_tests_that_exist() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    code = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    functions = set(re.findall(r"^def (\w+)\(", code, re.MULTILINE))
    lua = {path.name for path in (ROOT / "worker" / "store" / "lua").iterdir()}
    for name in re.findall(r"`([a-z_]+(?:/[a-z_.]+)+)`", page):
        assert (ROOT / name).exists(), name
    assert set(re.findall(r"`(\w+\.lua)`", page)) <= lua
    table = page.split("## Invariants")[1].split("\n## ")[0]
    for row in (line for line in table.splitlines() if re.match(r"\| \d", line)):
        breakers = [name for name in re.findall(r"`([\w/.]+)`", row.split("|")[-2]) if "/" not in name]
        assert set(breakers) <= functions, row


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings as GitHub makes them: lower case, words joined with hyphens, no punctuation."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere() -> None:
    for page in [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / name / "README.md" for name in ("openim_presence", "examples")),
    ]:
        for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", page.read_text()):
            linked = page.parent / target if target else page
            assert linked.exists(), (page, target)
            assert not anchor or anchor in anchors(linked), (page, target, anchor)


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_a_page_begins_with_who_should_read_it_and_what_they_know_then(page: Path) -> None:
    heading, opening, _ = page.read_text().split("\n\n", 2)
    assert re.fullmatch(r"# .+", heading)
    assert re.fullmatch(r"For .+\. Afterwards .+\.", " ".join(opening.split()))


def listed(readme: str) -> list[str]:
    """What the table of documents links to, in its order."""
    table = re.split(r"\n## (?:Documents|文档)[^\n]*", (ROOT / readme).read_text())[1].split("\n## ")[0]
    return re.findall(r"\]\(([^)]+)\)", table)


def test_the_table_of_documents_has_each_page_once() -> None:
    """It is also the navigation of the site."""
    pages = [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / name / "README.md" for name in ("openim_presence", "examples")),
    ]
    start = {"README.md", "README.zh-CN.md"}
    assert sorted(listed("README.md")) == sorted({str(page.relative_to(ROOT)) for page in pages} - start)


def test_the_chinese_readme_shows_and_lists_the_same() -> None:
    english, chinese = ((ROOT / name).read_text() for name in ("README.md", "README.zh-CN.md"))
    assert programs(chinese) == programs(english)
    assert listed("README.zh-CN.md") == listed("README.md")


def programs(page: str) -> list[str]:
    """Its blocks of code, without their comments."""
    return [re.sub(r"# .*", "#", block) for block in re.findall(r"^```\w*\n(.*?)^```", page, re.MULTILINE | re.DOTALL)]


def test_every_program_is_run_by_a_test_and_every_example_is_listed() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests" / "integration").glob("*.py"))
    for name in recipes.shown():
        assert f'"{name}"' in tests
    examples = {path for path in recipes.EXAMPLES.rglob("*") if path.is_file()} - {recipes.EXAMPLES / "README.md"}
    listed = set(re.findall(r"\]\(([\w/.]+)\)", recipes.text("README.md"))) - {"../docs/cookbook.md"}
    assert listed == {str(path.relative_to(recipes.EXAMPLES)) for path in examples if "node_modules" not in path.parts}
    for program in ("service.py", "push.py", "mirror.py", "node/reader.mjs", "go/reader/main.go"):
        assert f"(../examples/{program})" in (ROOT / "docs" / "cookbook.md").read_text()


def test_programs_that_the_docs_show_are_formatted_and_free_of_lint() -> None:
    for name, program in recipes.shown().items():
        for step in (["format", "--check"], ["check"]) if name.endswith(".py") else ():
            command = [sys.executable, "-m", "ruff", *step, "--stdin-filename", ROOT / "docs" / name, "-"]
            done = subprocess.run(command, input=program, cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, (name, done.stdout, done.stderr)


def test_each_step_of_the_workflows_is_a_script_that_is_there() -> None:
    """What runs on GitHub can run on a contributor's machine as well."""
    workflows = "".join(path.read_text() for path in (ROOT / ".github" / "workflows").iterdir())
    steps = re.findall(r"- run: (?:[A-Z_]+=\S+ )?(\S+)", workflows)
    assert {".ci/run", ".ci/dist", ".ci/version"} <= set(steps)
    for script in steps:
        assert os.access(ROOT / script, os.X_OK), script
