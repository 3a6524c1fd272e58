"""Minidumps opened by an unmodified vol, from the command line."""

from __future__ import annotations

import json
import lzma
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.minidump_builder import write_minidump
from tests.minidump_machine import RVAS, Machine
from tests.volatility import CACHE, vol

ROOT = Path(__file__).parents[1]
SHARED = ROOT / ".." / "shared"


def modules_in_vol(dump: Path) -> list[dict[str, Any]]:
    """Rows of windows.modules, by an unmodified vol with the plugin directory of this checkout."""
    paths = ("--cache-path", CACHE, "-p", ROOT / "vol_plugins", "-s", SHARED / "symbols", "-f", dump)
    done = vol("-q", "--offline", "-r", "jsonl", *paths, "windows.modules")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_genuine_minidump_in_vol() -> None:
    """An unmodified vol lists a genuine minidump's 151 drivers."""
    sample = SHARED / "samples" / "triage_x64.dmp"
    if not sample.exists():
        pytest.skip(f"{sample.name} is missing")
    rows = modules_in_vol(sample)
    assert len(rows) == 151
    assert (rows[0]["Name"], rows[0]["Size"]) == ("ntoskrnl.exe", 0x1046000)
    assert "hal.dll" in {row["Name"] for row in rows}


@pytest.mark.parametrize(("pdb", "pae"), [("ntkrnlpa.pdb", True), ("ntkrpamp.pdb", False)])
def test_x86_minidump_in_vol(pdb: str, pae: bool, tmp_path: Path) -> None:
    """An unmodified vol finds the real x86 kernel that a minidump's addresses belong to, and lists its drivers."""
    files = list((SHARED / "symbols" / "windows" / pdb).glob("*.json.xz"))
    if not files:
        pytest.skip(f"the symbols of {pdb} are missing")
    with lzma.open(files[0]) as stream:
        symbols = json.load(stream)["symbols"]
    machine = Machine(False, pae)
    scene = machine.scene()
    names = [name for name in RVAS if name not in ("KeNumberProcessors", "KdDebuggerDataBlock")]
    addresses = {name: machine.base + symbols[name]["address"] for name in names}
    block = {"KdDebuggerDataBlock": machine.base + symbols["KdDebuggerDataBlock"]["address"]}
    scene = replace(scene, debugger_data={**scene.debugger_data, **addresses}, header={**scene.header, **block})
    dump = tmp_path / "mini.dmp"
    dump.write_bytes(write_minidump(scene))
    rows = modules_in_vol(dump)
    assert [(row["Name"], row["Base"], row["Size"]) for row in rows] == [
        ("ntoskrnl.exe", machine.base, 0x214000),
        ("Bfilter.sys", machine.base + 0x1000000, 0x9000),
    ]
