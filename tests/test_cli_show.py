"""`apcaudit show`: cards that fit the terminal and leave nothing out that a responder needs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from apcaudit.cli import main

ROW = {
    "Thread": 0x8AB54388,
    "PID": 4,
    "TID": 340,
    "Process": "System",
    "Attached": "BAVSvc.exe (1264)",
    "State": "Running",
    "ApcStateIndex": 1,
    "KernelApcPending": True,
    "KernelApcDisable": None,
    "StartRoutine": "Bfilter!ScUnInitExcludePath+0x30",
    "Queue": "kernel",
    "Apc": 0x8A3F6248,
    "KernelRoutine": "nt!IopCompleteRequest",
    "Origin": "completion of IRP 0x8a3f6208",
    "Severity": "critical",
    "Findings": "detach-bugcheck,undelivered",
    "Explanation": "detach-bugcheck: it would stop. undelivered: it waits. evidence: Type is 6.",
}

CARD = """\
1 thread with APCs queued or findings, 1 APC queued: 1 critical

CRITICAL  detach-bugcheck, undelivered
  thread     0x8ab54388, TID 340, Running
  process    System, PID 4, attached to BAVSvc.exe (1264)
  starts at  Bfilter!ScUnInitExcludePath+0x30
  APC state  ApcStateIndex 1, KernelApcPending 1
  queued     kernel, KAPC 0x8a3f6248
  runs       KernelRoutine nt!IopCompleteRequest
  origin     completion of IRP 0x8a3f6208
  * detach-bugcheck: it would stop.
  * undelivered: it waits.
  * evidence: Type is 6.
"""


def written(folder: Path, *rows: dict[str, object]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("\n" + "".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row becomes a card; what is absent is left out, and each finding has its line."""
    assert main(["show", written(tmp_path, ROW)]) == 0
    assert capsys.readouterr().out == CARD


def test_the_worst_come_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Cards are ordered by severity, rows of one severity keep their order."""
    rows = [{**ROW, "TID": tid, "Severity": level} for tid, level in ((1, "low"), (2, "critical"), (3, "low"))]
    main(["show", written(tmp_path, *rows)])
    out = capsys.readouterr().out
    assert [line.split(", ")[1] for line in out.splitlines() if "thread  " in line] == ["TID 2", "TID 1", "TID 3"]


def test_no_line_is_wider_than_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long explanations and origins are folded at the terminal's width."""
    monkeypatch.setenv("COLUMNS", "72")
    main(["show", written(tmp_path, {**ROW, "Origin": "word " * 60, "Explanation": "word " * 200})])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 72


def test_no_output_is_no_clean_bill(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty file is what a vol that failed leaves: an error; rows that are none are nothing to report."""
    (tmp_path / "rows").write_text("")
    assert main(["show", str(tmp_path / "rows")]) == 1
    assert main(["show", written(tmp_path)]) == 0
    assert capsys.readouterr().out == "0 threads with APCs queued or findings, 0 APCs queued: nothing wrong\n"


def test_what_is_no_json_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Input of another kind is an error of one line that says so."""
    path = tmp_path / "rows.txt"
    path.write_text("Volatility 3 Framework\n")
    assert main(["show", str(path)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no rows of the audit" in error


CLEAN = {**ROW, "Severity": "info", "Findings": "", "Explanation": "", "Apc": None, "Queue": None}


def test_a_summary_of_an_ordinary_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of rows without findings there are no cards: how many threads and APCs there are, and why these are queued."""
    why = "still queued, suspended in place (WaitRegister.State 4, WaitSuspended; SuspendCount 1)."
    rows = [{**CLEAN, "Thread": 0x1000 * number} for number in range(3)]
    rows += [{**CLEAN, "Thread": 0x9000, "Apc": 0x10 * number, "Explanation": why} for number in range(2)]
    rows += [{**ROW, "Thread": 0xA000, "Severity": "low", "Findings": "undelivered"}]
    assert main(["show", written(tmp_path, *rows), "--min-severity", "medium"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "5 threads, 3 APCs queued: nothing wrong",
        "  still queued: 2 suspended in place",
        "  explained, worth seeing: undelivered 1",
    ]


def test_every_row_as_a_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --min-severity info rows without findings are cards too."""
    main(["show", written(tmp_path, CLEAN), "--min-severity", "info"])
    assert "INFO      nothing found" in capsys.readouterr().out


STOPPED = "bugcheck 0x6 (INVALID_PROCESS_DETACH_ATTEMPT), no parameters; 2026-01-02 03:04:05 UTC, Windows 5.1.2600 x86"

#: The row of a thread that crashed and has nothing queued and no finding.
CRASHED = ROW | {
    "Severity": "info",
    "Findings": "",
    "Queue": None,
    "Apc": None,
    "KernelRoutine": None,
    "Origin": None,
    "Explanation": f"crash: bugcheck 0x6 stopped it. stopped: {STOPPED}. stack: nt!KeBugCheck+0x14.",
}


@pytest.mark.parametrize("behind", ["", " nested-attach: none.", " yara: none. evidence: none."])
def test_how_the_machine_stopped_is_on_top(behind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """How the machine stopped stands once, above all cards, whatever follows it in the explanation."""
    rows = [ROW | {"Explanation": f"crash: it stopped. stopped: {STOPPED}.{behind}", "Apc": apc} for apc in (1, 2)]
    assert main(["show", written(tmp_path, *rows)]) == 0
    shown = capsys.readouterr().out
    top, _, rest = shown.partition("\n1 thread with APCs queued or findings, 2 APCs queued: 1 critical\n")
    assert " ".join(top.split()) == f"The machine stopped: {STOPPED}"
    assert "stopped: bugcheck" not in rest
    assert rest.count("* crash: it stopped.") == 2


def test_the_thread_that_crashed_has_a_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a finding too, at any --min-severity; the summary does not call a machine that crashed fine."""
    for arguments in ((), ("--min-severity", "critical")):
        assert main(["show", *arguments, written(tmp_path, CRASHED)]) == 0
        shown = capsys.readouterr().out
        assert "\n0 threads with APCs queued or findings, 0 APCs queued: no finding\n" in shown
        assert "\nINFO      no finding; the thread that crashed\n  thread     0x8ab54388, TID 340, Running\n" in shown
        assert "  * crash: bugcheck 0x6 stopped it.\n  * stack: nt!KeBugCheck+0x14.\n" in shown


def test_the_crash_of_all_threads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --all the summary counts every thread, the one that crashed too."""
    clean = CRASHED | {"Thread": 0x1000, "Explanation": ""}
    assert main(["show", written(tmp_path, clean, CRASHED)]) == 0
    assert "\n2 threads, 0 APCs queued: no finding\n" in capsys.readouterr().out
