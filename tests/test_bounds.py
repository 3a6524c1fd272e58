"""SECURITY.md's table of bounds and the code have the same bounds, and each says what tells of it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.conftest import ROOT

PACKAGE = ROOT / "vol_plugins" / "windows" / "apcaudit"

#: How the name of a bound is made; what is left out are numbers of another kind with such a name.
BOUND = re.compile(r"^_?(\w+_(BOUND|LIMIT|KEPT|BEYOND)|(MOST|LARGEST|LONGEST)_\w+|LONGEST|KEPT|DEEPEST|REMEMBERED)$")
NO_BOUNDS = {
    "vol/borrowing._MOST_WRONG",  # of how many threads one may disagree
    "code/program.LONGEST",  # bytes of an instruction
    "unwind/scan.LONGEST",
    "dumps/synthesized._MOST_PAGES_TO_RSDS",  # how far vol looks
}


def bounds_of_the_code() -> set[str]:
    """Name every bound: module and constant."""
    found = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        module = path.relative_to(PACKAGE).with_suffix("").as_posix().removesuffix("/__init__")
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            names = {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
            found |= {f"{module}.{name}" for name in names if BOUND.match(name)}
    return found - NO_BOUNDS


def table() -> list[tuple[str, str]]:
    """Give the names and what tells of them, of each row."""
    text = Path(ROOT / "SECURITY.md").read_text(encoding="utf-8").partition("## Bounds")[2].partition("\n## ")[0]
    rows = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    return [(row[1], row[2].strip()) for row in rows]


def test_the_table_has_every_bound() -> None:
    """A bound that is in the code and not in the table, or the other way round, is a lie to whoever reads it."""
    named = {name for names, _ in table() for name in re.findall(r"`([^`]+)`", names)}
    assert named == bounds_of_the_code()


def test_every_bound_is_told() -> None:
    """Each row says what tells of the bound, or why nothing needs to."""
    assert [names for names, told in table() if not told] == []
