"""Facts tables and symbol files: two writings of the same facts."""

from __future__ import annotations

import json
import lzma
import re
from pathlib import Path

import pytest

from apcaudit.synthetic import intermediate, isf, kernels, ntsymbols, table
from apcaudit.synthetic.distil import distil
from apcaudit.synthetic.distil import main as distil_main
from apcaudit.synthetic.layout import Layout, LayoutError, Struct

ROOT = Path(__file__).resolve().parent.parent
SHIPPING = sorted((*kernels.OWN, *kernels.TYPES_ONLY))


@pytest.mark.parametrize("name", SHIPPING)
def test_symbol_files_are_what_the_tables_give(name: str) -> None:
    """The repository's symbol files are made from the facts tables and from nothing else."""
    kernel = kernels.load_kernel(name)
    path = ROOT / "symbols" / isf.relative_path(kernel)
    made = isf.content(kernel, kernels.own_layout(name)[1])
    assert json.loads(lzma.decompress(path.read_bytes())) == json.loads(lzma.decompress(made))


def test_symbol_files_have_no_strangers() -> None:
    """Below symbols/ lies what the tables make, and no copy of anybody's symbol file."""
    expected = {ROOT / "symbols" / isf.relative_path(kernels.load_kernel(name)) for name in SHIPPING}
    assert {path for path in (ROOT / "symbols").rglob("*") if path.is_file()} == expected


@pytest.mark.parametrize("name", SHIPPING)
def test_tables_state_their_source_and_stay_small(name: str) -> None:
    """A facts table names where its facts are from and stays readable in size."""
    path = ROOT / "apcaudit" / "synthetic" / "layouts" / f"{name}.txt"
    text = path.read_text(encoding="ascii")
    assert text.startswith(("source Microsoft's public PDB", "source VergiliusProject/kernels-data (MIT)"))
    assert len(text) < 60_000


@pytest.mark.parametrize("name", SHIPPING)
def test_distilling_a_distillate_changes_nothing(name: str, tmp_path: Path) -> None:
    """A symbol file that was made from a table distils back to that table."""
    kernel = kernels.load_kernel(name)
    symbol_file = ROOT / "symbols" / isf.relative_path(kernel)
    again = tmp_path / "table.txt"
    assert distil_main([str(symbol_file), "-o", str(again), "--source", kernels.own_layout(name)[1]]) == 0
    original = ROOT / "apcaudit" / "synthetic" / "layouts" / f"{name}.txt"
    assert again.read_text(encoding="ascii") == original.read_text(encoding="ascii")


def test_distilling_keeps_size_and_closes_over_what_is_embedded() -> None:
    """A type cut down keeps its size; what a kept member embeds is kept; a pointer to a lost type becomes void."""
    layout = Layout(
        8,
        {
            "_EPROCESS": Struct("_EPROCESS", 0x500, {"Pcb": (0, "_KPROCESS"), "Secret": (0x480, "u64")}),
            "_KPROCESS": Struct("_KPROCESS", 0x400, {"Header": (0, "_INNER"), "State": (0x3F0, "u32:3:2")}),
            "_INNER": Struct("_INNER", 0x10, {"Next": (0, "[2]*_LOST"), "Lock": (8, "u32")}),
            "_LOST": Struct("_LOST", 8, {}),
        },
        {},
    )
    kept = distil(layout)
    assert kept.structs["_EPROCESS"] == Struct("_EPROCESS", 0x500, {"Pcb": (0, "_KPROCESS")})
    assert kept.structs["_INNER"].members == {"Next": (0, "[2]*void"), "Lock": (8, "u32")}
    assert "_LOST" not in kept.structs


def test_table_round_trip() -> None:
    """What is written as a table reads back the same."""
    name = "10-19041-x64"
    layout, source = kernels.own_layout(name)
    again = table.read_table(table.write_table(layout, [source]))
    assert (again.structs, again.enums, again.pointer_size) == (layout.structs, layout.enums, 8)


@pytest.mark.parametrize("line", ["struct _A", " zz Name u8", "nonsense 1", "pointer x"])
def test_damaged_table_is_refused_by_line(line: str) -> None:
    """A line that is no fact is refused with its number."""
    with pytest.raises(ValueError, match="line 2"):
        table.read_table(f"pointer 4\n{line}\n")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("ApcState", (0x98, 0x30)),
        ("ApcState.ApcListHead[1].Blink", (0xB0, 8)),
        ("SavedApcState.Process", (0x278, 8)),
        ("ApcQueueable", (0x74, 4)),
        ("SchedulerApc.Inserted", (0x2DA, 1)),
    ],
)
def test_member_paths(path: str, expected: tuple[int, int]) -> None:
    """Members resolve through structures, arrays and bit fields; offsets of Windows 10 x64 (field guide)."""
    field = kernels.load_kernel("10-19041-x64").layout.field("_KTHREAD", path)
    assert (field.offset, field.size) == expected


def test_bit_position() -> None:
    """ApcQueueable is bit 14 of its word on Windows 10 x64."""
    field = kernels.load_kernel("10-19041-x64").layout.field("_KTHREAD", "ApcQueueable")
    assert (field.bit, field.bits) == (14, 1)


@pytest.mark.parametrize("path", ["SuspendApc", "ApcState.Nothing", "ApcState.ApcListHead[2]", "Process[0]"])
def test_lacking_member_is_named(path: str) -> None:
    """A member that this version lacks is an error that names it."""
    with pytest.raises(LayoutError, match=re.escape(path.split(".")[-1].split("[")[0])):
        kernels.load_kernel("10-19041-x64").layout.field("_KTHREAD", path)


def test_own_guids_are_marked_and_distinct() -> None:
    """Our kernels' GUIDs are invented ones: all begin alike, none twice."""
    guids = [own.pdb.guid for own in (*kernels.OWN.values(), *kernels.TYPES_ONLY.values())]
    assert all(re.fullmatch(r"A9C0DE[0-9A-F]{26}", guid) for guid in guids)
    assert len(set(guids)) == len(guids)


def test_folded_names_share_an_address() -> None:
    """From Windows 8 on, the scheduler APC's empty routines share their address with unrelated functions."""
    addresses = ntsymbols.addresses((10, 0, 19041), 8)
    names = [name for name, address in addresses.items() if address == addresses["KiSchedulerApcNop"]]
    assert {"KiSchedulerApcNop", "KiSchedulerApcRundown", "EmpCheckErrataList"} <= set(names)
    assert min(names) == "EmpCheckErrataList"


def test_symbol_file_errors(tmp_path: Path) -> None:
    """A file that is no symbol file is refused in one line that names it."""
    bad = tmp_path / "bad.json"
    for content in (b"", b"{}", b"[1]", b"\xff\xfe"):
        bad.write_bytes(content)
        with pytest.raises(intermediate.IntermediateError, match=r"bad\.json: not a symbol file"):
            intermediate.read(bad)
    with pytest.raises(kernels.KernelError, match="no kernel nonesuch"):
        kernels.load_kernel("nonesuch")
