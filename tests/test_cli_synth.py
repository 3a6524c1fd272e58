"""`apcaudit synth` and `apcaudit where`, as a user calls them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from apcaudit.cli import main
from tests.conftest import ROOT
from tests.volatility import CACHE, rows


def test_raw_is_the_default(tmp_path: Path) -> None:
    """`synth SCENE -o FILE` writes raw memory that Volatility recognises."""
    path = tmp_path / "memory.raw"
    assert main(["synth", "healthy", "-o", str(path)]) == 0
    names = [row["ImageFileName"] for row in rows(path, "windows.pslist.PsList", cache=CACHE)]
    assert names == ["System", "svchost.exe", "explorer.exe"]


def test_dump_of_another_kernel(tmp_path: Path) -> None:
    """--format dump and --kernel choose the file's format and the machine's Windows."""
    path = tmp_path / "memory.dmp"
    assert main(["synth", "healthy", "-o", str(path), "--format", "dump", "--kernel", "7-sp1-x86"]) == 0
    assert path.read_bytes()[:8] == b"PAGEDUMP"


def test_thread_count(tmp_path: Path) -> None:
    """--threads sets how many threads the measuring scene has."""
    path = tmp_path / "memory.raw"
    assert main(["synth", "many", "-o", str(path), "--threads", "900"]) == 0
    found = rows(path, "windows.pslist.PsList", cache=CACHE)
    assert sum(row["Threads"] for row in found) == 900


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    """--list names the scenes and the kernels."""
    assert main(["synth", "--list"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("seed", "healthy", "many", "xp-sp3-x86", "11-26100-x64"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonesuch", "-o", "x"], "no scene nonesuch"),
        (["healthy", "-o", "x", "--kernel", "nonesuch"], "no kernel nonesuch"),
        (["healthy"], "-o IMAGE"),
        (["healthy", "-o", "x", "--threads", "5"], "takes no --threads"),
        (["healthy", "-o", "/nonexistent/x"], "/nonexistent/x"),
        (["seed", "-o", "x", "--kernel", __file__], "not a symbol file"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What goes wrong is one line on stderr and exit code 1."""
    monkeypatch.chdir(tmp_path)
    assert main(["synth", *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_where_prints_arguments_for_vol(capsys: pytest.CaptureFixture[str]) -> None:
    """`where` prints -p and -s with directories that hold the plugin and the symbol files."""
    assert main(["where"]) == 0
    flag_p, plugins, flag_s, symbols = capsys.readouterr().out.splitlines()
    assert (flag_p, flag_s) == ("-p", "-s")
    assert (Path(plugins) / "windows" / "apcaudit" / "__init__.py").is_file()
    assert (Path(symbols) / "windows").is_dir()


@pytest.mark.skipif(shutil.which("sh") is None, reason="there is no sh here")
def test_where_in_a_shell() -> None:
    """`vol $(apcaudit where)` in sh gives vol the four arguments and nothing else."""
    script = f'printf "%s\n" $("{sys.executable}" -m apcaudit.cli where)'
    done = subprocess.run(["sh", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["-p", str(ROOT / "vol_plugins"), "-s", str(ROOT / "symbols")]
