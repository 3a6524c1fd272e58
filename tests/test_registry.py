"""The registry of findings: one row each, from which checks, pages and the command's explanations come."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from volatility3.plugins.windows.apcaudit.checks import RULES, Subject
from volatility3.plugins.windows.apcaudit.findings import Severity

from apcaudit import cli
from apcaudit.synthetic.situations import SITUATIONS
from docs import examples
from tests.conftest import ROOT

FINDINGS = ROOT / "docs" / "findings"
CODES = [rule.code for rule in RULES]


def test_a_code_has_one_row() -> None:
    """No code stands twice, and each is lower-case words with hyphens."""
    assert sorted(set(CODES)) == sorted(CODES)
    assert [code for code in CODES if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", code)] == []


def test_pages_and_rows() -> None:
    """Every finding has a page, and every page a finding."""
    assert {path.stem for path in FINDINGS.glob("*.md")} == set(CODES)


def test_every_finding_is_planted() -> None:
    """Every finding is planted in a situation of the tests or of the guide's examples."""
    planted = {code for situation in (*SITUATIONS, *examples.OWN) for code in situation.expected}
    assert planted == set(CODES)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_a_page_has_the_severities_of_its_row(rule: object) -> None:
    """The bold words of a page's second line are the severities that the finding can have."""
    code = rule.code  # type: ignore[attr-defined]
    head = (FINDINGS / f"{code}.md").read_text(encoding="utf-8").partition("##")[0]
    words = {word for word in re.findall(r"\*\*([a-z]+)\*\*", head) if word.upper() in Severity.__members__}
    assert words == {str(each) for each in rule.severities}  # type: ignore[attr-defined]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_a_row_says_who_reports_it(rule: object) -> None:
    """A finding of a thread, a list or an APC has a check; those of start routines come from the room code."""
    checked = any(each is not None for each in (rule.thread, rule.apc, rule.target))  # type: ignore[attr-defined]
    assert checked is (rule.subject is not Subject.CODE)  # type: ignore[attr-defined]


def test_the_index_of_the_guide() -> None:
    """The guide's index lists every finding with the severities and the title of its row."""
    text = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[([a-z0-9-]+)\]\(findings/\1\.md\) \| ([a-z, ]+) \| (.*) \|$", text, re.MULTILINE)
    expected = {(rule.code, ", ".join(map(str, rule.severities)), rule.title) for rule in RULES}
    assert set(listed) == expected


def test_explain_prints_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    """`apcaudit explain CODE` prints what the page says, without the marks of its example."""
    assert cli.main(["explain", "detach-bugcheck"]) == 0
    printed = capsys.readouterr().out
    page = (FINDINGS / "detach-bugcheck.md").read_text(encoding="utf-8")
    assert printed.splitlines() == [line for line in page.splitlines() if not line.startswith("<!--")]


def test_explain_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a code it lists every finding in one line."""
    assert cli.main(["explain"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == CODES


def test_explain_helps_with_a_wrong_code(capsys: pytest.CaptureFixture[str]) -> None:
    """A code that is none is an error that names those like it."""
    assert cli.main(["explain", "detach-bugchek"]) == 1
    assert "do you mean detach-bugcheck or" in capsys.readouterr().err


def test_explain_needs_no_extra() -> None:
    """It runs where the extras are not installed, and is a command of its own."""
    command = [sys.executable, "-m", "apcaudit", "explain", "lost-apc"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("# lost-apc\n")
