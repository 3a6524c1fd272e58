"""Kernel minidumps as values: what they hold, and what their headers lie about."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from volatility3.plugins.windows.apcaudit.formats.triage import (
    DumpUnloadedDriver,
    Minidump,
    MinidumpError,
    parse_minidump,
)

from tests.minidump_builder import DriverEntry, MinidumpScene, UnloadedEntry, write_minidump

SAMPLE = Path(__file__).parents[1] / ".." / "shared" / "samples" / "triage_x64.dmp"

KERN_BASE = {True: 0xFFFFF80312000000, False: 0x804D7000}


def parse(data: bytes) -> Minidump:
    return parse_minidump(lambda offset, length: data[offset : offset + length], len(data))


def scene(is_64bit: bool, **changes: object) -> MinidumpScene:
    base = KERN_BASE[is_64bit]
    declared: dict[str, object] = {
        "is_64bit": is_64bit,
        "kern_base": base,
        "memory": {base + 0x9000: b"nine", base + 0x2100: b"two"},
        "drivers": (
            DriverEntry(r"\WINDOWS\system32\ntoskrnl.exe", base, 0x214000, 0x217F92, 0x4802516A),
            DriverEntry(r"\SystemRoot\System32\Drivers\Bfilter.sys", base + 0x1000000, 0x9000, 7, 8),
        ),
        "unloaded": (UnloadedEntry("Cdaudio.SYS", base + 0x2000000, base + 0x2005000),),
        "debugger_data": {
            "PsLoadedModuleList": base + 0x7D040,
            "KiProcessorBlock": base + 0x8000,
            "SizeEThread": 0x258,
        },
    }
    return MinidumpScene(**(declared | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("is_64bit", [True, False])
def test_lists(is_64bit: bool) -> None:
    """Drivers, unloaded drivers, data blocks and debugger data of either width are read as written."""
    base = KERN_BASE[is_64bit]
    data = write_minidump(scene(is_64bit))
    dump = parse(data)
    assert dump.defects == ()
    assert [(d.name, d.base, d.size, d.checksum, d.timestamp) for d in dump.drivers] == [
        (r"\WINDOWS\system32\ntoskrnl.exe", base, 0x214000, 0x217F92, 0x4802516A),
        (r"\SystemRoot\System32\Drivers\Bfilter.sys", base + 0x1000000, 0x9000, 7, 8),
    ]
    assert dump.kernel is dump.drivers[0]
    assert dump.unloaded_drivers == (DumpUnloadedDriver("Cdaudio.SYS", base + 0x2000000, base + 0x2005000),)
    assert [(b.address, data[b.offset : b.offset + b.size]) for b in dump.data_blocks] == [
        (base + 0x2100, b"two"),
        (base + 0x9000, b"nine"),
    ]
    assert dump.debugger_data is not None
    assert dump.debugger_data.kern_base == base
    assert dump.debugger_data.variables == {"PsLoadedModuleList": base + 0x7D040, "KiProcessorBlock": base + 0x8000}
    assert dump.debugger_data.structures == {"SizeEThread": 0x258}


LIES = [
    # (triage fields, part of the defect, drivers left, blocks left)
    ({"DriverCount": 0xFFFFFFFF}, "drivers claimed", None, 2),
    ({"DriverListOffset": 0xFFFFFFF0}, "drivers claimed, 0 taken", 0, 2),
    ({"DataBlocksCount": 0xFFFFFFFF}, "data blocks claimed", 2, None),
    ({"DataBlocksOffset": 0x7FFFFFFF}, "data blocks claimed, 0 taken", 2, 0),
    ({"DebuggerDataOffset": 0x10}, "debugger data block is damaged", 2, 2),
    ({"DebuggerDataOffset": 0xFFFFFFFF}, "debugger data block is damaged", 2, 2),
    ({"UnloadedDriversOffset": 4}, "unloaded drivers claimed", 2, 2),
    ({"ValidOffset": 0x100}, "no TRGD mark", 2, 2),
]


@pytest.mark.parametrize("is_64bit", [True, False])
@pytest.mark.parametrize(("lie", "defect", "drivers", "blocks"), LIES)
def test_lies_are_defects(
    is_64bit: bool, lie: dict[str, int], defect: str, drivers: int | None, blocks: int | None
) -> None:
    """A count or offset that lies costs its own part, and is told."""
    dump = parse(write_minidump(scene(is_64bit, triage=lie)))
    assert any(defect in found for found in dump.defects)
    assert drivers is None or len(dump.drivers) == drivers
    assert blocks is None or len(dump.data_blocks) == blocks


def test_overlapping_blocks_are_told() -> None:
    """Two blocks that claim the same address are a defect, and both stay."""
    base = KERN_BASE[True]
    dump = parse(write_minidump(scene(True, memory={base: bytes(16), base + 8: bytes(16)})))
    assert len(dump.data_blocks) == 2
    assert dump.defects == (f"data blocks at {base:#x} and {base + 8:#x} overlap",)


def test_blocks_in_many_places_are_left_out() -> None:
    """A byte in each of thousands of regions would cost a thousand times its size in page tables: a defect."""
    base = KERN_BASE[True]
    dump = parse(write_minidump(scene(True, memory={base + (index << 21): b"x" for index in range(4200)})))
    assert len(dump.data_blocks) <= 4096
    assert dump.defects[0].endswith("0x1 bytes claimed, 0x0 taken")


def test_many_defects_are_counted() -> None:
    """Defects are told one by one up to a limit, then as a number."""
    base = KERN_BASE[True]
    dump = parse(write_minidump(scene(True, memory={base + index: bytes(2) for index in range(100)})))
    assert len(dump.defects) == 33
    assert dump.defects[-1] == "67 more defects"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no crash dump header"),
        (b"MDMP" + bytes(0x3000), "no crash dump header"),
        (write_minidump(scene(True, header={"DumpType": 1})), "DumpType 1"),
        (write_minidump(scene(True))[:0x2000], "ends before"),
    ],
)
def test_not_a_minidump(data: bytes, reason: str) -> None:
    """Anything that is not a kernel minidump is one kind of error, with the reason."""
    with pytest.raises(MinidumpError, match=reason):
        parse(data)


@pytest.mark.parametrize("is_64bit", [True, False])
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damage_never_raises(is_64bit: bool, data: st.DataObject) -> None:
    """Whatever stands in the minidump's own header, wherever the file ends: a value, or MinidumpError."""
    whole = bytearray(write_minidump(scene(is_64bit)))
    start = 0x2000 if is_64bit else 0x1000
    offset = start + 4 * data.draw(st.integers(0, 31))
    whole[offset : offset + 4] = data.draw(st.binary(min_size=4, max_size=4))
    cut = bytes(whole[: data.draw(st.integers(start, len(whole)))])
    try:
        dump = parse(cut)
    except MinidumpError:
        return
    assert all(block.offset + block.size <= len(cut) for block in dump.data_blocks)


def test_genuine_minidump() -> None:
    """A genuine Windows 10 minidump has 151 drivers, four unloaded ones and no defects."""
    if not SAMPLE.exists():
        pytest.skip(f"{SAMPLE.name} is missing")
    dump = parse(SAMPLE.read_bytes())
    assert dump.defects == ()
    assert len(dump.drivers) == 151
    assert (dump.drivers[0].name, dump.drivers[0].base) == (r"\SystemRoot\system32\ntoskrnl.exe", 0xFFFFF8047BA00000)
    # Its own image headers, which the dump holds too, say the same.
    assert (dump.drivers[0].size, dump.drivers[0].timestamp) == (0x1046000, 0xD8333E6)
    assert [d.name for d in dump.unloaded_drivers] == ["dam.sys", "WdBoot.sys", "hwpolicy.sys", "mcupdate.dll"]
    assert len(dump.data_blocks) == 1831
