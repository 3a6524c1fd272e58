"""The command's own streams: an encoding that lacks characters, and streams that are closed."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from apcaudit.bulk import store
from tests import bulk_images
from tests.bulk_images import need_extra
from tests.report_results import suspect, write

need_extra()

NAME = "кадр🦀"
"""Of letters that ASCII lacks, one of them beyond 16 bits."""

ESCAPED = "\\u043a\\u0430\\u0434\\u0440\\U0001f980"
"""How Python's `backslashreplace` writes that."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the tests' own."""
    return bulk_images.indexed(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of results, rows of vol, and evidence that is no image, all with that name."""
    made = tmp_path_factory.mktemp("made")
    write(made / NAME, suspect(1, NAME))
    row = {"Severity": "high", "Findings": "undelivered", "Thread": 1, "Process": NAME, "Explanation": NAME}
    (made / "rows.jsonl").write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    (made / "evidence").mkdir()
    (made / "evidence" / f"{NAME}.raw").touch()
    return made


def run(line: str, folder: Path, cache: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a shell's line in a folder; `apcaudit` in it is the command."""
    line = line.replace("apcaudit", shlex.join([sys.executable, "-m", "apcaudit"]))
    environment = bulk_images.environment(cache) | variables
    return subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        timeout=120,
    )


#: Commands that print a name, how they print it where they may use ASCII only, and their exit codes.
PRINTING = {
    "apcaudit show rows.jsonl": (ESCAPED, 0),
    "apcaudit show < rows.jsonl": (ESCAPED, 0),
    f"apcaudit export {NAME}": ("\\u043a\\u0430\\u0434\\u0440\\ud83e\\udd80", 0),
    f"apcaudit export {NAME} --format csv": (ESCAPED, 0),
    f"apcaudit stack {NAME} --jsonl --kind finding": ("undelivered", 0),
    f"apcaudit report {NAME} -o {NAME}.html": (ESCAPED, 0),
    f"apcaudit export {NAME}/none": (ESCAPED, 1),
    "apcaudit symbols evidence": (ESCAPED, 2),
    "apcaudit scan evidence -o other --offline": (ESCAPED, 2),
}


@pytest.mark.skipif(os.name == "nt", reason="the lines are of a POSIX shell")
@pytest.mark.parametrize("line", PRINTING)
def test_ascii(line: str, folder: Path, cache: Path) -> None:
    """What an encoding lacks is printed as an escape, on stdout and on stderr."""
    done = run(line, folder, cache, PYTHONIOENCODING="ascii")
    printed, code = PRINTING[line]
    assert done.returncode == code, done.stderr
    assert printed in done.stdout + done.stderr
    assert (done.stdout + done.stderr).isascii()
    assert "Traceback" not in done.stderr


#: What has to be told of closed streams, and the exit code.
CLOSED = {
    "apcaudit show rows.jsonl >&-": ("apcaudit: standard output is closed\n", 1),
    "apcaudit show <&-": ("apcaudit: standard input is closed: name a file of rows", 1),
    f"apcaudit export {NAME} >&-": ("apcaudit: standard output is closed: name a file with -o\n", 1),
    f"apcaudit export {NAME} -o /dev/stdout >&-": ("apcaudit: /dev/stdout: ", 1),
    f"apcaudit stack {NAME} >&-": ("apcaudit: standard output is closed\n", 1),
    "apcaudit where >&-": ("apcaudit: standard output is closed\n", 1),
    "apcaudit --help >&-": ("apcaudit: standard output is closed\n", 1),
    f"apcaudit report {NAME} -o page.html >&- <&-": ("page.html: 1 image, ", 0),
    f"apcaudit report {NAME} -o page.html 2>&-": ("", 0),
    "apcaudit nonsense 2>&-": ("", 1),
}


@pytest.mark.skipif(os.name == "nt", reason="the lines are of a POSIX shell")
@pytest.mark.parametrize("line", CLOSED)
def test_closed(line: str, folder: Path, cache: Path) -> None:
    """What nobody would see is an error in one line, what is written elsewhere is written."""
    done = run(line, folder, cache)
    said, code = CLOSED[line]
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == (1 if said else 0)


@pytest.mark.skipif(os.name == "nt", reason="the lines are of a POSIX shell")
def test_a_scan_without_any_stream(tmp_path: Path, cache: Path) -> None:
    """What a scan says goes nowhere when all its streams are closed, least of all into its results."""
    bulk_images.write(tmp_path / "image.dmp", "healthy")
    done = run("apcaudit scan image.dmp -o results --offline <&- >&- 2>&-", tmp_path, cache)
    assert done.returncode == 0
    assert [row.status for row in store.images(tmp_path / "results")] == ["scanned"]
