"""How `apcaudit scan` ends: its exit code, and what it says of an error in use."""

from __future__ import annotations

from pathlib import Path

import pytest

from apcaudit.bulk.outcome import Failed, Outcome, Scanned
from apcaudit.bulk.scan_command import exit_code
from apcaudit.cli import main
from tests import bulk_images, report_results
from tests.bulk_images import need_extra
from tests.command import run

need_extra()


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
        ([".", "-o", "x", "-s", "file"], "file: is no folder (-s)"),
        ([".", "-o", "x", "--scratch", "file"], "file: is no folder (--scratch)"),
        ([".", "-o", "file"], "file: is no folder (-o)"),
        ([".", "-o", "x", "--workers", "2", "--scheduler", "tcp://a:1"], "give one of them"),
        (["."], "-o/--output"),
    ],
)
def test_errors_in_use(arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in use is exit code 1 and says what is wrong."""
    (tmp_path / "file").write_bytes(b"file")
    monkeypatch.chdir(tmp_path)
    done = run("scan", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr


NUMBERS = [
    ("--workers", "0", "no whole number"),
    ("--workers", "-1", "no whole number"),
    ("--workers", "two", "no whole number"),
    ("--timeout", "0", "no number of seconds"),
    ("--timeout", "-1", "no number of seconds"),
    ("--timeout", "nan", "no number of seconds"),
    ("--timeout", "inf", "no number of seconds"),
    ("--timeout", "soon", "no number of seconds"),
    ("--memory", "0", "too little to read any image"),
    ("--memory", "100M", "too little to read any image"),
]


@pytest.mark.parametrize(
    ("command", "option", "value", "message"),
    [
        *(("scan", *each) for each in NUMBERS),
        *(("symbols", *each) for each in NUMBERS if each[0] != "--workers"),
        ("stack", "--at-most", "0", "no whole number"),
    ],
)
def test_numbers_that_are_none(
    command: str, option: str, value: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A number with which nothing could be done is an error in use, before anything is looked at."""
    results = tmp_path / "results"
    arguments = [command, str(tmp_path), f"{option}={value}", *(["-o", str(results)] if command == "scan" else [])]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 1
    assert f"argument {option}: '{value}' is {message}" in capsys.readouterr().err
    assert not results.exists()


SCAN_FIRST = "give the one that `apcaudit scan IMAGES -o RESULTS` has made"
TAKES_IMAGES = "holds results of `apcaudit scan`, and this takes images: see what is in them with `apcaudit report"
VOL_FIRST = "which `vol -q -r jsonl -f IMAGE windows.apcaudit --wide` prints"


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["stack", "IMAGE"], SCAN_FIRST),
        (["stack", "EVIDENCE"], SCAN_FIRST),
        (["stack", "MISSING"], SCAN_FIRST),
        (["stack", "RESULTS", "--baseline", "IMAGE"], SCAN_FIRST),
        (["export", "IMAGE"], SCAN_FIRST),
        (["export", "EVIDENCE"], SCAN_FIRST),
        (["report", "EVIDENCE", "-o", "OUT"], SCAN_FIRST),
        (["scan", "RESULTS", "-o", "OUT"], TAKES_IMAGES),
        (["symbols", "RESULTS"], TAKES_IMAGES),
        (["symbols", "IMAGE", "-s", "IMAGE"], "is no folder (-s)"),
        (["show", "IMAGE"], VOL_FIRST),
        (["show", "RESULTS"], VOL_FIRST),
    ],
)
def test_the_wrong_kind_of_thing(
    arguments: list[str], wanted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command that is given something else than it takes says in one line what it takes, and makes nothing."""
    places = {name: tmp_path / name.lower() for name in ("IMAGE", "EVIDENCE", "RESULTS", "MISSING", "OUT")}
    bulk_images.write(places["IMAGE"], "healthy")
    places["EVIDENCE"].mkdir()
    (places["EVIDENCE"] / "a.dmp").write_bytes(places["IMAGE"].read_bytes())
    report_results.write(places["RESULTS"], report_results.suspect(1))
    assert main([str(places.get(each, each)) for each in arguments]) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert wanted in captured.err
    assert not places["OUT"].exists()
