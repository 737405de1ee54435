"""Makes the documentation site out of the pages as they are: `make docs`.

The source is the whole repository, so a link means the same here as on the code host: it leads to a page, or to a
copy of any other file. The navigation is the table under "Documents" in README.md. No page fetches
anything from another host.
"""

import re
import shutil
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
START, CHINESE = "README", "README.zh-CN"

project = "openim-presence"
release = re.findall(r'__version__ = "(.+)"', (ROOT / "openim_presence" / "__init__.py").read_text())[0]
extensions = ["myst_parser"]
root_doc = START
include_patterns = ["*.md", "docs/*.md", "openim_presence/README.md", "examples/README.md"]
exclude_patterns = [".*"]
suppress_warnings = ["toc.not_included"]  # the Chinese start page; tests/unit/test_docs.py looks for all others
myst_heading_anchors = 4

html_theme = "furo"
html_title = f"openim-presence {release}"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_use_index = False
html_copy_source = False
html_show_copyright = False


def navigation(readme: str) -> str:
    """A group for each row of the table of documents, and in it the row's pages in their order."""
    table = readme.split("## Documents")[1].split("\n## ", 1)[0]
    groups = []
    for role, cell in re.findall(r"^\| \*\*(.+?)\*\* \| (.+) \|$", table, re.MULTILINE):
        pages = [f"{name[0].upper()}{name[1:]} <{page}>" for name, page in re.findall(r"\[(.+?)\]\((.+?)\.md\)", cell)]
        groups.append("\n".join(["", "```{toctree}", ":hidden:", f":caption: {role}", "", *pages, "```", ""]))
    return "".join(groups)


def add_navigation(_app: Sphinx, page: str, source: list[str]) -> None:
    if page == START:
        source[0] += navigation(source[0])


def name_language(_app: Sphinx, page: str, _template: str, context: dict[str, object], _tree: object) -> None:
    if page == CHINESE:
        context["language"] = "zh-CN"


def copy_start_page(app: Sphinx, error: Exception | None) -> None:
    """To where a web server looks for it."""
    if not error:
        shutil.copyfile(app.outdir / f"{START}.html", app.outdir / "index.html")


def setup(app: Sphinx) -> None:
    app.connect("source-read", add_navigation)
    app.connect("html-page-context", name_language)
    app.connect("build-finished", copy_start_page)
