"""Kernels recognised by addresses of their variables; symbol files read once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from volatility3.plugins.windows.apcaudit.dumps.kernel_match import KernelSymbolFile, SymbolCache, match_kernel

from tests.minidump_machine import GUID, RVAS, Machine


def kernel(guid: str, **symbols: int) -> KernelSymbolFile:
    return KernelSymbolFile(f"file:///{guid}.json", "ntkrnlmp.pdb", guid, 1, symbols, {})


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([kernel("AA", a=1, b=2, c=3)], "AA"),
        ([kernel("AA", a=1, b=2, c=3), kernel("BB", a=1, b=2, c=4)], "AA"),
        ([kernel("AA", a=1, b=2, c=3), kernel("AA", a=1, b=2, c=3)], "AA"),
        ([kernel("AA", a=1, b=2, c=3), kernel("BB", a=1, b=2, c=3, d=9)], None),
        ([kernel("AA", a=1, b=2)], None),
        ([], None),
    ],
    ids=["fits", "one disagrees", "same PDB twice", "two PDBs fit", "too few to tell", "no files"],
)
def test_match(files: list[KernelSymbolFile], expected: str | None) -> None:
    """A kernel is taken if three or more addresses agree, none disagrees, and no other PDB fits as well."""
    found = match_kernel({"a": 1, "b": 2, "c": 3}, files).kernel
    assert (found.guid if found else None) == expected


def test_symbol_files_are_read_once(tmp_path: Path) -> None:
    """A symbol file is read again only when its size or time changed; a damaged memory is begun anew."""
    machine = Machine(True)
    path = tmp_path / "kernel.json"
    path.write_text(json.dumps(machine.isf()))
    opened: list[str] = []

    def opener(url: str) -> Any:
        opened.append(url)
        return path.open("rb")

    store = tmp_path / "memory.json"
    for stamp, damage, reads in (([1, 1], None, 1), ([1, 1], None, 1), ([1, 2], None, 2), ([1, 2], b"{", 3)):
        if damage is not None:
            store.write_bytes(damage)
        memory = SymbolCache(str(store))
        found = memory.symbols("file:///k", stamp, opener)
        memory.save()
        assert found is not None
        assert (found.guid, dict(found.symbols)) == (GUID, RVAS)
        assert len(opened) == reads
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [path.name, "memory.json"]
