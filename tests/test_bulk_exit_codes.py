"""How `apcaudit scan` ends: its exit code, and what it says of an error in use."""

from __future__ import annotations

from pathlib import Path

import pytest

from apcaudit.bulk.outcome import Failed, Outcome, Scanned
from apcaudit.bulk.scan_command import exit_code
from tests.bulk_images import apcaudit, need_extra

need_extra()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache of the test's own."""
    return tmp_path / "cache"


CLEAN = Scanned("a", "aa", "info", 0, 1.0)
BAD = Scanned("b", "bb", "high", 1, 1.0)
BROKE = Failed("c", "cc", "why", "open", 1.0)


@pytest.mark.parametrize(
    ("outcomes", "fail_on", "code"),
    [
        ([CLEAN, BAD], None, 0),
        ([CLEAN, BAD], "critical", 0),
        ([CLEAN, BAD], "high", 3),
        ([CLEAN], "info", 0),
        ([CLEAN, BROKE], None, 2),
        ([BAD, BROKE], "low", 3),
    ],
)
def test_exit_codes(outcomes: list[Outcome], fail_on: str | None, code: int) -> None:
    """0: all scanned; 2: some failed; 3: findings at or above what was asked about, whatever failed beside."""
    assert exit_code(outcomes, fail_on) == code


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonesuch", "-o", "x"], "no such file"),
        ([".", "-o", "x", "--memory", "much"], "no size"),
        ([".", "-o", "x", "-s", "nonesuch"], "no such folder"),
        ([".", "-o", "x", "--workers", "2", "--scheduler", "tcp://a:1"], "give one of them"),
        (["."], "-o/--output"),
    ],
)
def test_errors_in_use(arguments: list[str], message: str, tmp_path: Path, cache: Path) -> None:
    """An error in use is exit code 1 and says what is wrong."""
    done = apcaudit("scan", *arguments, cache=cache, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
