"""Folders for unpacking: private, gone afterwards, and gone at the next start where a run was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from apcaudit.bulk import scratch
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks on Windows")

HOLD = "import sys, time; from pathlib import Path; from apcaudit.bulk import scratch\n"
HOLD += "with scratch.folder(Path(sys.argv[1])) as made: (made / 'image').write_bytes(b'x'); print(made, flush=True)\n"
HOLD = HOLD.replace("; print(made, flush=True)\n", "; print(made, flush=True); time.sleep(600)\n")


def hold(parent: Path) -> tuple[subprocess.Popen[str], Path]:
    """Start a process that holds a folder; give it and the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(parent)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_a_folder_is_private_and_removed(tmp_path: Path) -> None:
    """Nobody else may read it, and nothing of it is left."""
    with scratch.folder(tmp_path) as made:
        assert made.stat().st_mode & 0o777 == 0o700
        (made / "image").write_bytes(b"evidence")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    """The next start removes the folder of a process that was killed, and never one whose process is alive."""
    killed, left = hold(tmp_path)
    alive, held = hold(tmp_path)
    try:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert (left / "image").exists()
        with scratch.folder(tmp_path):
            assert not left.exists()
            assert (held / "image").exists()
    finally:
        alive.kill()
        alive.wait()


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    """A folder of another machine's run, or of somebody's own making, is not touched."""
    names = ("apcaudit-elsewhere-0123", "apcaudit-report", "evidence")
    for name in names:
        (tmp_path / name).mkdir()
    (tmp_path / f"{scratch._prefix()}link").symlink_to(tmp_path / "evidence")
    scratch.clean(tmp_path)
    assert {each.name for each in tmp_path.iterdir()} >= set(names)


def test_what_was_being_removed_is_removed(tmp_path: Path) -> None:
    """A folder without its lock was being removed by its own process when that was killed."""
    left = tmp_path / f"{scratch._prefix()}half"
    left.mkdir()
    (left / "image").write_bytes(b"evidence")
    scratch.clean(tmp_path)
    assert not left.exists()


def test_unfinished_results(tmp_path: Path) -> None:
    """Pieces of results of another machine are removed after a day; younger ones may be somebody's."""
    (tmp_path / ".known").mkdir()
    pieces = [
        tmp_path / ".unfinished-1",
        tmp_path / ".unfinished-2",
        tmp_path / ".known" / ".1",
        tmp_path / ".known" / "k",
    ]
    for piece in pieces[:2]:
        piece.mkdir()
    for piece in pieces[2:]:
        piece.write_text("{}")
    day = time.time() - 2 * 24 * 3600
    for old in (pieces[0], pieces[2], pieces[3]):
        os.utime(old, (day, day))
    scratch.clean_results(tmp_path)
    assert [piece.exists() for piece in pieces] == [False, True, False, True]


def test_unfinished_results_of_who_is_gone(tmp_path: Path) -> None:
    """Pieces whose process has ended on this machine are removed at once, never those of one that lives."""
    script = "from apcaudit.bulk import scratch; print(scratch.unfinished_name())"
    command = [sys.executable, "-c", script]
    gone = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()
    (tmp_path / ".known").mkdir()
    left = []
    for mark in (gone, scratch.unfinished_name(), f"elsewhere-{gone.partition('-')[2]}"):
        left += [tmp_path / f".unfinished-{mark}", tmp_path / ".known" / f".{mark}"]
        left[-2].mkdir()
        left[-1].write_text("{}")
    scratch.clean_results(tmp_path)
    assert [piece.exists() for piece in left] == [False, False, True, True, True, True]


def test_a_folder_that_never_got_its_name(tmp_path: Path) -> None:
    """What a run left that was killed while it made its folder is removed at the next start."""
    script = "import sys, tempfile; from pathlib import Path; from apcaudit.bulk import scratch\n"
    script += "scratch.os.rename = lambda *_: scratch.os._exit(0)\n"
    script += "with scratch.folder(Path(sys.argv[1])): pass"
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, cwd=ROOT)
    (left,) = tmp_path.iterdir()
    with scratch.folder(tmp_path):
        assert not left.exists()
