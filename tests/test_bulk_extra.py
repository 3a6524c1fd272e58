"""Without the extra `bulk` the command says how to get it, and everything else works."""

from __future__ import annotations

import sys

import pytest

from apcaudit.bulk.extra import load, need
from apcaudit.cli import main
from apcaudit.errors import ApcAuditError


def test_what_is_missing_is_named() -> None:
    """A package that is not installed is named in one line, with the command that installs it."""
    for check in (load, need):
        with pytest.raises(ApcAuditError, match=r"needs nonesuch.*pip install 'apcaudit\[bulk\]'"):
            check("nonesuch")


@pytest.mark.parametrize("command", [["scan", ".", "-o", "x"], ["stack", "x"], ["export", "x"]])
def test_commands_without_the_extra(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands that need it end with exit code 1 and one line."""
    monkeypatch.setattr(sys, "path", [])
    for name in ("pyarrow", "pyarrow.parquet", "distributed", "duckdb", "rich"):
        # What Python takes for a module that cannot be imported.
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(sys, "meta_path", [])
    assert main(command) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "pip install 'apcaudit[bulk]'" in captured.err
    assert captured.err.count("\n") == 1
