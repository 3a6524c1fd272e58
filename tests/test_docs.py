"""The analysts' guide: a page for every finding, examples as the plugin prints them, and nothing that leads nowhere."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from volatility3 import framework
from volatility3.plugins.windows.apcaudit.signatures.rules import AT_COMPILATION

from apcaudit.synthetic.situations import SITUATIONS
from docs import examples
from tests.conftest import ROOT

DOCS = ROOT / "docs"
PACKAGE = ROOT / "vol_plugins" / "windows" / "apcaudit"
PAGES = {path.stem: path for path in (DOCS / "findings").glob("*.md")}
GUIDE = sorted(DOCS.rglob("*.md"))

Rows = dict[str, list[dict[str, Any]]]


def codes_of_the_checks() -> set[str]:
    """Take the codes from the source: what the checks hand to a call together with a severity."""
    found = set()
    for text in map(text_of, PACKAGE.rglob("*.py")):
        if not re.search("[sS]everity", text):
            continue
        calls = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
        for call in calls:
            if any(re.search("'severity'|'Severity'", ast.dump(argument)) for argument in call.args):
                values = (argument.value for argument in call.args if isinstance(argument, ast.Constant))
                found |= {value for value in values if isinstance(value, str) and re.fullmatch(r"[a-z0-9-]+", value)}
    return found


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def anchors(path: Path) -> set[str]:
    """Give the anchors that a Markdown viewer makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", text_of(path), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """Audit the machines of the guide's examples once."""
    return examples.audited(
        (name for page in GUIDE for name in examples.names(text_of(page))), tmp_path_factory.mktemp("docs")
    )


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Gather what explanations say of every situation, and of a thread that is alone in being stuck."""
    folder = tmp_path_factory.mktemp("said")
    every = examples.audited((*examples.SEED, *(each.name for each in SITUATIONS)), folder / "every")
    alone = examples.audited(("stuck-special",), folder / "alone")
    return "\n".join(row["Explanation"] for found in (every, alone) for of in found.values() for row in of).lower()


def quotes(text: str) -> list[str]:
    """Give what a page has in italics and is no mere emphasis: four words at least."""
    prose = re.sub(r"```.*?```|`[^`]*`|\*\*[^*]+\*\*", "", text, flags=re.DOTALL)
    found = (" ".join(quote.split()) for quote in re.findall(r"(?<![*\w])\*([^*]+)\*(?![*\w])", prose))
    return [quote for quote in found if len(quote.split()) >= 4]


def test_every_code_has_a_page_and_every_page_a_code() -> None:
    """What the checks can emit, what the situations plant and what the guide explains are the same codes."""
    planted = {code for situation in (*SITUATIONS, *examples.OWN) for code in situation.expected}
    assert codes_of_the_checks() == set(PAGES)
    assert planted == set(PAGES)


@pytest.mark.parametrize("code", sorted(PAGES))
def test_a_page(code: str, rows: Rows) -> None:
    """A page is short, is named as its code, says severity, neighbour, next step, and shows the code in an example."""
    text = text_of(PAGES[code])
    assert text.startswith(f"# {code}\n")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == [
        "What it means",
        "How it comes about",
        "Check next",
        "Example",
    ]
    assert "Silent: " in text
    assert len(re.sub(r"```text\n.*?```", "", text, flags=re.DOTALL).splitlines()) <= 60
    shown = examples.names(text)
    assert shown
    for name in shown:
        assert any(code in row["Findings"].split(",") for row in rows[name]), name


@pytest.mark.parametrize("code", sorted(PAGES))
def test_severities(code: str) -> None:
    """The severities in bold at a page's top are those of the index."""
    stated = set(re.findall(r"\*\*(critical|high|medium|low)\*\*", text_of(PAGES[code]).split("##")[0]))
    index = re.search(rf"^\| \[{code}\]\([^)]+\) \| ([a-z, ]+) \|", text_of(DOCS / "README.md"), re.MULTILINE)
    assert index, "the index lacks it"
    assert set(index[1].split(", ")) <= stated


@pytest.mark.parametrize("page", GUIDE, ids=lambda path: path.stem)
def test_examples_are_what_the_plugin_prints(page: Path, rows: Rows) -> None:
    """An example is the plugin's row as it is now; `python -m docs.examples` writes them anew."""
    assert text_of(page) == examples.updated(page, rows)


@pytest.mark.parametrize("code", sorted(PAGES))
def test_quotes_are_what_the_plugin_says(code: str, said: str) -> None:
    """A sentence in italics, by which an analyst knows a cause, is one that an explanation has."""
    assert [quote for quote in quotes(text_of(PAGES[code])) if quote.lower() not in said] == []


def test_the_readme_shows_the_seed(tmp_path: Path) -> None:
    """The README's row and card are those of the program, as `make demo` prints them."""
    readme = text_of(examples.README)
    assert readme == examples.readme_updated(readme, tmp_path)


def test_what_it_was_checked_against_is_on_the_first_screen() -> None:
    """Who opens the README learns before the first example what the audit was held to, and what it never saw."""
    assert "](docs/validation.md)" in text_of(examples.README).partition("```")[0]


@pytest.mark.parametrize("page", [*GUIDE, examples.README], ids=lambda path: path.stem)
def test_links_resolve(page: Path) -> None:
    """A link leads to a file of the guide, and to a heading that it has."""
    for target, _, anchor in (link.partition("#") for link in re.findall(r"\]\(([^)]+)\)", text_of(page))):
        if target.startswith("https://"):
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.is_file(), target
        assert not anchor or anchor in anchors(file), anchor


def test_named_plugins_exist(rows: Rows) -> None:
    """Every plugin of vol that the guide names is one of vol's, in full up to its class."""
    known = {name.rpartition(".")[0] for name in framework.list_plugins()}
    named = {name for page in GUIDE for name in re.findall(r"\bwindows(?:\.[a-z_]+)+", text_of(page))}
    assert named - known == set()


def test_the_externals_of_yara_rules() -> None:
    """The guide's table has each external variable that rules are given, and no other."""
    table = text_of(DOCS / "README.md").partition("Rules can use these external variables:")[2].partition("\n\nSo")[0]
    named = [name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)]
    assert named == list(AT_COMPILATION)


def test_every_column_is_explained(rows: Rows) -> None:
    """The table of columns has all of the plugin's, in their order, marked where they need --wide."""
    from volatility3.plugins.windows.apcaudit.output.columns import COLUMNS

    table = text_of(DOCS / "README.md").partition("## How to read a row")[2].partition("\n\nAfter")[0]
    cells = [row.split("|")[1].strip() for row in table.splitlines() if row.startswith("| ")][1:]
    named = [name.strip() for cell in cells for name in cell.split(",")]
    assert named == [f"{column.name} *" if column.wide else column.name for column in COLUMNS]
