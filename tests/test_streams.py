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
from tests import bulk_images, forked
from tests.bulk_images import indexed, need_extra
from tests.report_results import suspect, write

need_extra()

NAME = "кадр🦀"
"""Of letters that ASCII lacks, one of them beyond 16 bits."""

ESCAPED = "\\u043a\\u0430\\u0434\\u0440\\U0001f980"
"""How Python's `backslashreplace` writes that."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of results, rows of vol, and evidence that is no image, all with that name."""
    made = tmp_path_factory.mktemp("made")
    write(made / NAME, suspect(1, NAME))
    row = {"Severity": "high", "Findings": "undelivered", "Thread": 1, "Process": NAME, "Explanation": NAME}
    (made / "rows.jsonl").write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    (made / "evidence").mkdir()
    (made / "evidence" / f"{NAME}.raw").touch()
    indexed(made / "cache")
    return made


#: How a shell closes a stream, or takes it from a file.
_CLOSES = {"<&-": 0, ">&-": 1, "2>&-": 2}


def run(line: str, folder: Path, encoding: str = "utf-8") -> subprocess.CompletedProcess[str]:
    """Run a line of shell in a folder, one command with what it has instead of its streams."""
    words = shlex.split(line)[1:]
    given = {"stdin": folder / words[-1]} if words[-2:-1] == ["<"] else {}
    arguments = [word for word in (words[:-2] if given else words) if word not in _CLOSES]
    closed = [_CLOSES[word] for word in words if word in _CLOSES]
    return forked.apcaudit(*arguments, cache=folder / "cache", cwd=folder, closed=closed, encoding=encoding, **given)


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
def test_ascii(line: str, folder: Path) -> None:
    """What an encoding lacks is printed as an escape, on stdout and on stderr."""
    done = run(line, folder, "ascii")
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
def test_closed(line: str, folder: Path) -> None:
    """What nobody would see is an error in one line, what is written elsewhere is written."""
    done = run(line, folder)
    said, code = CLOSED[line]
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == (1 if said else 0)


@pytest.mark.skipif(os.name == "nt", reason="the lines are of a POSIX shell")
def test_a_scan_without_any_stream(tmp_path: Path) -> None:
    """What a scan says goes nowhere when all its streams are closed, least of all into its results."""
    bulk_images.write(tmp_path / "image.dmp", "healthy")
    line = "exec apcaudit scan image.dmp -o results --offline <&- >&- 2>&-"
    line = line.replace("apcaudit", shlex.join([sys.executable, "-m", "apcaudit"]))
    environment = bulk_images.environment(indexed(tmp_path / "cache"))
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment, check=False, timeout=120)
    assert done.returncode == 0
    assert [row.status for row in store.images(tmp_path / "results")] == ["scanned"]
