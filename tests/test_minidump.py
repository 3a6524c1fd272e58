"""Kernel minidumps as values: what they hold, and what their headers lie about."""

from __future__ import annotations

import struct
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

from tests.minidump_builder import FIELDS, DriverEntry, MinidumpScene, UnloadedEntry, write_minidump

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
    # (triage fields, the defect or a part of it, drivers left, blocks left)
    ({"DriverCount": 0xFFFFFFFF}, "the minidump lacks 4,294,967,293 of the 4,294,967,295 drivers that it claims", 2, 2),
    ({"DriverListOffset": 0xFFFFFFF0}, "the minidump lacks the list of drivers: DriverListOffset is 0xfffffff0", 0, 2),
    ({"DataBlocksCount": 0x10000}, "of the 65,536 blocks of memory that it claims", 2, 2),
    ({"DataBlocksOffset": 0x7FFFFFFF}, "the minidump lacks the blocks of memory: DataBlocksOffset is 0x7fffffff", 2, 0),
    ({"DebuggerDataOffset": 0x10}, "DebuggerDataOffset is 0x10, within the headers, which end at 0x", 2, 2),
    ({"DebuggerDataOffset": 0xFFFFFFFF}, "the minidump lacks the kernel's addresses: DebuggerDataOffset is", 2, 2),
    (
        {"UnloadedDriversOffset": 4},
        "the minidump lacks the list of unloaded drivers: UnloadedDriversOffset is 0x4",
        2,
        2,
    ),
    ({"ValidOffset": 0x100}, "the minidump's header is damaged: ValidOffset is 0x100, and no TRGD mark is there", 2, 2),
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


@pytest.mark.parametrize(("is_64bit", "elsewhere"), [(True, 0x2080), (False, 0x1068)])
def test_debugger_data_that_is_none(is_64bit: bool, elsewhere: int) -> None:
    """What has no KDBG tag is no debugger data block, wherever the header points to."""
    dump = parse(write_minidump(scene(is_64bit, triage={"DebuggerDataOffset": elsewhere})))
    assert dump.debugger_data is None
    assert dump.defects == ("the minidump lacks the kernel's addresses: its debugger data block is damaged",)


OVERLAPS = [
    # (blocks by address relative to the kernel's base, how many pairs differ)
    ({0: b"abcdefgh", 4: b"efghijkl"}, 0),
    ({0: b"abcdefgh", 4: b"efgxijkl"}, 1),
    ({0: b"abcdefghijkl", 2: b"cd", 8: b"ijkl"}, 0),
    ({0: b"abcdefghijkl", 2: b"cd", 8: b"ijk-"}, 1),
    ({0: b"abcd", 2: b"-d", 3: b"-"}, 2),
]


@pytest.mark.parametrize(("blocks", "differing"), OVERLAPS)
def test_overlapping_blocks(blocks: dict[int, bytes], differing: int) -> None:
    """Windows writes some memory twice; only blocks that differ where they overlap contradict each other."""
    base = KERN_BASE[True]
    dump = parse(write_minidump(scene(True, memory={base + at: data for at, data in blocks.items()})))
    assert len(dump.data_blocks) == len(blocks)
    told = [defect for defect in dump.defects if "differ where they overlap" in defect]
    assert dump.defects == tuple(told)
    assert len(told) == bool(differing)
    assert (f"and so do {differing - 1} more" in "".join(told)) is (differing > 1)


def test_blocks_in_many_places_are_left_out() -> None:
    """A byte in each of thousands of regions would cost a thousand times its size in page tables: a defect."""
    base = KERN_BASE[True]
    dump = parse(write_minidump(scene(True, memory={base + (index << 21): b"x" for index in range(4200)})))
    assert len(dump.data_blocks) <= 4096
    (defect,) = dump.defects
    assert defect.startswith("the minidump lacks 104 bytes: 104 of its 4,200 blocks of memory")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no crash dump header"),
        (b"MDMP" + bytes(0x3000), "no crash dump header"),
        (write_minidump(scene(True, header={"DumpType": 1})), "DumpType 1"),
        (write_minidump(scene(True))[:0x2000], "ends before"),
        (write_minidump(scene(True, header={"Attributes": 0x100})), "encrypted"),
    ],
)
def test_not_a_minidump(data: bytes, reason: str) -> None:
    """Anything that is not a kernel minidump is one kind of error, with the reason."""
    with pytest.raises(MinidumpError, match=reason):
        parse(data)


#: What no damage to a field can be told by: nothing reads the options, and any value is possible.
UNREAD = {"TriageOptions"}


def told(data: bytes) -> tuple[str, ...]:
    """Return the defects of a file, or the reason for which it is refused."""
    try:
        return parse(data).defects
    except MinidumpError as error:
        return (str(error),)


def fields_without_a_defect(whole: bytes, is_64bit: bool) -> list[tuple[str, bytes]]:
    """Set each field of the triage header to 0 and to its maximum; return those that nothing is told of."""
    silent = []
    for name, offset, size in FIELDS[is_64bit]:
        at = (0x2000 if is_64bit else 0x1000) + offset
        for value in (bytes(size), b"\xff" * size):
            damaged = whole[:at] + value + whole[at + size :]
            if damaged != whole and name not in UNREAD and not told(damaged):
                silent.append((name, value))
    return silent


def cuts_without_a_defect(whole: bytes) -> list[int]:
    """Cut a file at twenty places; return the sizes at which nothing is told."""
    sizes = [len(whole) * number // 21 for number in range(1, 21)]
    return [size for size in sizes if not told(whole[:size])]


@pytest.mark.parametrize("is_64bit", [True, False])
def test_every_damage_is_told(is_64bit: bool) -> None:
    """Wherever the file ends, and whichever field of its header is 0 or at its maximum, that is told."""
    whole = write_minidump(
        scene(
            is_64bit,
            prcb=b"p" * 0x200,
            process=b"e" * 0x80,
            thread=b"t" * 0x100,
            stack=(KERN_BASE[is_64bit] + 0x5000000, b"s" * 0x400),
        )
    )
    assert told(whole) == ()
    assert fields_without_a_defect(whole, is_64bit) == []
    assert cuts_without_a_defect(whole) == []


CUT = [
    # (the part in whose middle the file ends, what is missing)
    ("PrcbOffset", "the crashed processor's KPRCB (in part), the crashed thread's process, the crashed thread, the"),
    ("ThreadOffset", "the crashed thread (in part), the crashed thread's stack, the kernel's addresses, the list of"),
    ("StringPoolOffset", "the names of drivers (in part), the list of drivers, the blocks of memory"),
    ("DriverListOffset", "the list of drivers (in part), the blocks of memory"),
]


@pytest.mark.parametrize("is_64bit", [True, False])
@pytest.mark.parametrize(("field", "missing"), CUT)
def test_a_cut_file_names_what_it_lacks(is_64bit: bool, field: str, missing: str) -> None:
    """A file that ends early says how many of its bytes there are, and which parts lie behind its end."""
    declared = scene(is_64bit, prcb=b"p" * 64, process=b"e" * 64, thread=b"t" * 64, stack=(1 << 31, b"s" * 64))
    whole = write_minidump(declared)
    offset = next(offset for name, offset, _ in FIELDS[is_64bit] if name == field)
    start = (0x2000 if is_64bit else 0x1000) + offset
    size = int.from_bytes(whole[start : start + 4], "little") + 32
    sentence = parse(whole[:size]).defects[0]
    assert sentence.startswith(
        f"the minidump is cut: it has {size:,} of the {len(whole):,} bytes that its header promises"
    )
    assert f"; missing: {missing}" in sentence


def test_a_cut_behind_the_minidump_itself() -> None:
    """What drivers add behind the minidump (DumpBlob) is not read; where it ends early, that is said too."""
    whole = write_minidump(scene(True))
    blob = struct.pack("<I16sIII", 32, b"tag", 0x40, 8, 8) + bytes(0x50)
    secondary = b"DumpBlob" + struct.pack("<II", 16, 19041) + blob * 2
    assert told(whole + secondary) == ()
    size = len(whole) + len(secondary)
    for cut in (size - 1, size - len(blob) + 5):
        (sentence,) = told((whole + secondary)[:cut])
        assert sentence.startswith(f"the minidump is cut: it has {cut:,} of at least ")
        assert sentence.endswith("missing: only what drivers added behind it")


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


def test_genuine_minidump_damaged() -> None:
    """The same holds for each field and for twenty cuts of a genuine minidump, which itself has no defect."""
    if not SAMPLE.exists():
        pytest.skip(f"{SAMPLE.name} is missing")
    whole = SAMPLE.read_bytes()
    assert told(whole) == ()
    assert fields_without_a_defect(whole, is_64bit=True) == []
    assert cuts_without_a_defect(whole) == []


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
