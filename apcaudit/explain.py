"""`apcaudit explain`: prints the page of a finding, which says what it means, what causes it and what to do next."""

from __future__ import annotations

import argparse
import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from apcaudit.errors import ApcAuditError

MEANING, NEXT = "What it means", "Check next"
"""Headings that every page has."""

if TYPE_CHECKING:
    from windows.apcaudit.checks import Rule


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "explain",
        help="explain a finding",
        description="Print the page of a finding: what it means, how it comes about, how to go on. Without a code,"
        " list them all.",
    )
    parser.add_argument("code", nargs="?", metavar="CODE", help="as a row's Findings say it, e.g. detach-bugcheck")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print a finding's page, or the list of all findings."""
    rules = {rule.code: rule for rule in _rules()}
    if options.code is None:
        width = max(map(len, rules))
        for rule in rules.values():
            severities = ", ".join(map(str, rule.severities))
            print(f"{rule.code:<{width}}  {rule.title} ({severities})")
        return 0
    if options.code not in rules:
        near = difflib.get_close_matches(options.code, rules, 3)
        hint = f"; do you mean {' or '.join(near)}?" if near else ";"
        raise ApcAuditError(f"there is no finding {options.code!r}{hint} `apcaudit explain` lists them all")
    print(_page(options.code), end="")
    return 0


def _rules() -> tuple[Rule, ...]:
    # Imported here, since it imports vol, which takes time.
    from apcaudit.bulk import framework

    rules: tuple[Rule, ...] = framework.plugin_module("checks").RULES
    return rules


def _page(code: str) -> str:
    """Read a page without the marker comments around its generated example."""
    text = (_pages() / f"{code}.md").read_text(encoding="utf-8")
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("<!--"))


def codes() -> frozenset[str]:
    """Return the findings that have a page."""
    return frozenset(path.stem for path in _pages().glob("*.md"))


def sections(code: str) -> dict[str, str]:
    """Return the sections of a finding's page, Markdown by heading."""
    parts = re.split(r"^## (.+)\n", _page(code), flags=re.MULTILINE)[1:]
    return {heading: text.strip() for heading, text in zip(parts[::2], parts[1::2], strict=True)}


def _pages() -> Path:
    """Return the folder of the pages: in this checkout, else beside the installed command."""
    here = Path(__file__).resolve().parent
    checkout = here.parent / "docs" / "findings"
    return checkout if checkout.is_dir() else here / "findings"
