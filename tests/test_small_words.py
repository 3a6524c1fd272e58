"""What the command says on stderr and in short: numbers with their nouns, and reasons where there is nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from apcaudit.bulk.outcome import Failed, Outcome, Scanned
from apcaudit.bulk.progress import Counts, text_of
from apcaudit.cli import COMMANDS
from tests import command
from tests.bulk_images import need_extra
from tests.report_results import suspect, write

need_extra()

EARLIER = Scanned("a.raw", "aa", "low", 1, 0.5, reused=True)
NEW = Scanned("b.raw", "bb", "low", 2, 0.5)
FAILED = Failed("c.raw", "cc", "no kernel", "open", 0.5)


@pytest.mark.parametrize(
    ("total", "outcomes", "text"),
    [
        # A rate where something was read, and no rate of nothing.
        (1, [EARLIER], "1/1 image, 0 failed, 1 of an earlier scan"),
        (3, [EARLIER, EARLIER], "2/3 images, 0 failed, 2 of an earlier scan"),
        (3, [], "0/3 images, 0 failed"),
        (2, [EARLIER, NEW], "2/2 images, 0 failed, 0.5 images/s"),
        (2, [NEW, FAILED], "2/2 images, 1 failed, 1.0 images/s"),
        (4, [NEW, FAILED], "2/4 images, 1 failed, 1.0 images/s, 0:00:02 left"),
    ],
)
def test_counts(total: int, outcomes: list[Outcome], text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seconds after its start a scan says what is done, and how fast it reads where it has read something."""
    monkeypatch.setattr("time.monotonic", lambda: 102.0)
    counts = Counts(total, started=100.0)
    for each in outcomes:
        counts.add(each)
    assert str(counts) == text


def test_one_finding() -> None:
    """One finding is no findings."""
    assert text_of(EARLIER) == "a.raw: low, 1 finding, scanned earlier"
    assert text_of(NEW) == "b.raw: low, 2 findings in 0.5 s"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--baseline", "RESULTS"], "nothing new: RESULTS has all of it"),
        (["--baseline", "RESULTS", "--at-most", 1], "nothing new in 1 image or fewer: RESULTS has all of it"),
        (["--at-most", 1], "nothing to count in 1 image or fewer"),
        (["--kind", "yara"], "nothing to count"),
    ],
)
def test_nothing_to_stack(options: list[object], text: str, tmp_path: Path) -> None:
    """Where `stack` has no line it says why: for want of things, or since the baseline has them."""
    results = write(tmp_path / "results", suspect(1), suspect(2))
    given = [results if option == "RESULTS" else option for option in options]
    done = command.run("stack", results, *given)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 1)
    assert done.stderr == text.replace("RESULTS", str(results)) + "\n"


def test_one_image_in_a_report(tmp_path: Path) -> None:
    """A report of one image with one finding says so."""
    results = write(tmp_path / "results", suspect(1))
    done = command.run("report", results, "-o", tmp_path / "report.html")
    assert done.stderr == f"{tmp_path / 'report.html'}: 1 image, 0 failed, 1 finding\n"


def test_without_a_command() -> None:
    """Bare `apcaudit` lists its commands, and is an error in use."""
    done = command.run()
    assert (done.returncode, done.stdout) == (1, "")
    first_words = [line.split()[0] for line in done.stderr.splitlines() if line.strip()]
    assert [word for word in first_words if word in COMMANDS] == list(COMMANDS)


def test_rules_that_are_not_there(tmp_path: Path) -> None:
    """A rule file that does not exist is one line."""
    (tmp_path / "a.raw").write_bytes(b"memory")
    missing = tmp_path / "gone.yar"
    done = command.run("scan", tmp_path / "a.raw", "-o", tmp_path / "results", "--yara-file", missing)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"apcaudit: YARA rules: File does not exist: {missing}"]
