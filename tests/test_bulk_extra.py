"""Without the extras the command says how to get it, and everything else works."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from apcaudit.bulk.extra import load, need
from apcaudit.cli import main, parser
from apcaudit.errors import ApcAuditError
from tests.bulk_images import need_extra


def test_what_is_missing_is_named() -> None:
    """A package that is not installed is named in one line, with the command that installs it."""
    for check in (load, need):
        with pytest.raises(ApcAuditError, match=r"needs nonesuch: pip install nonesuch"):
            check("nonesuch")


BULK = ("pyarrow", "pyarrow.parquet", "duckdb", "rich")


@pytest.mark.parametrize(
    ("command", "missing", "said"),
    [
        (["scan", ".", "-o", "x"], BULK, "pyarrow rich"),
        (["stack", "RESULTS"], BULK, "pyarrow duckdb"),
        (["export", "RESULTS"], BULK, "pyarrow duckdb"),
        (["scan", ".", "-o", "x", "--scheduler", "tcp://127.0.0.1:1"], ("distributed",), "distributed"),
    ],
)
def test_commands_without_an_extra(
    command: list[str],
    missing: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The commands that need one end with exit code 1 and one line that says which."""
    if missing == ("distributed",):
        need_extra()
    (tmp_path / "image").mkdir()
    (tmp_path / "image" / "images.parquet").write_bytes(b"results")
    parser()  # loads every subcommand, which would not be found below
    monkeypatch.setattr(sys, "path", [])
    for name in missing:
        # What Python takes for a module that cannot be imported.
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(sys, "meta_path", [])
    assert main([str(tmp_path) if each == "RESULTS" else each for each in command]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"pip install {said}" in captured.err
    assert captured.err.count("\n") == 1
