"""The suite runs on the checkout's symbol files, or not at all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.installed_copy import other_symbol_files
from tests.volatility import ROOT

NAME = Path("windows/ntkrnlpa.pdb/A9C0DE00051026005512860AA0000001-1.json.xz")


def folder(path: Path, content: bytes) -> Path:
    file = path / NAME
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    return path


def test_files_of_another_state_are_found(tmp_path: Path) -> None:
    """A file of the checkout's name and another content is named; the same content, or another name, is no matter."""
    own = folder(tmp_path / "checkout", b"new")
    old, same = folder(tmp_path / "old", b"old"), folder(tmp_path / "same", b"new")
    (same / "windows/ntkrnlpa.pdb/00-1.json.xz").write_bytes(b"another kernel's")
    assert other_symbol_files(own, [own, same, old, tmp_path / "missing"]) == [old / NAME]


def test_the_suite_refuses_to_start(tmp_path: Path) -> None:
    """With symbol files of another state in vol's path, pytest stops and says what to do."""
    import volatility3

    site = tmp_path / "site"
    stale = site / "volatility3" / "symbols"
    shutil.copytree(Path(volatility3.__file__).parent, stale.parent, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.rmtree(stale / "windows", ignore_errors=True)
    folder(stale, b"of another state")
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "tests/test_calm.py"]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    assert str(stale / NAME) in run.stdout + run.stderr
    assert "make .venv/.test" in run.stdout + run.stderr
