"""Headers, imports, function bounds and names of images, and the table of modules, on honest and lying input."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from volatility3.plugins.windows.apcaudit.formats.pe import (
    SECTIONS_BOUND,
    SLOTS_BOUND,
    Exports,
    Header,
    PdbRecord,
    Section,
    name_of,
    read_exports,
    read_header,
    read_import_addresses,
    read_pdb_record,
)
from volatility3.plugins.windows.apcaudit.formats.unwind_info import DEFAULT_SIZE, function_size
from volatility3.plugins.windows.apcaudit.modules import ModuleRanges
from volatility3.plugins.windows.apcaudit.modules.driver import Driver

from apcaudit.synthetic import pe
from apcaudit.synthetic.intermediate import Pdb
from tests.test_exports import DIRECTORY, Export, Reader, image

SIZE = 0x8000
GUID = "A9C0DE00112233445566778899AABBCC"


def built(*, is_64bit: bool, exports: dict[str, int] | None = None) -> bytearray:
    """Lay out an image as a synthetic driver's is, in one piece."""
    parts = pe.PeImage(
        "Ghost.sys",
        SIZE,
        is_64bit,
        Pdb("ghost.pdb", GUID, 3),
        (6, 1, 7601),
        0x10000,
        exports or {},
        {
            "ntoskrnl.exe": {"KeInitializeApc": 0x81111111, "KeInsertQueueApc": 0x82222222},
            "hal.dll": {"Ex": 0x83333333},
        },
    )
    data = bytearray(SIZE)
    for rva, piece in pe.lay_out(parts).items():
        data[rva : rva + len(piece)] = piece
    return data


@pytest.mark.parametrize("is_64bit", [False, True])
def test_an_honest_image(is_64bit: bool) -> None:
    """Sections, imports and names come out as they were put in."""
    data = built(is_64bit=is_64bit, exports={"GhostMain": 0x1400})
    read = Reader(data)
    header = read_header(read)
    assert header is not None
    assert (header.machine, header.size_of_image) == (0x8664 if is_64bit else 0x14C, SIZE)
    assert [section.name for section in header.sections] == [".text", ".rdata", ".data", "INIT"]
    found = header.section_at(0x1400)
    assert found is not None
    assert found.name == ".text"
    slots = read_import_addresses(read, header, 8 if is_64bit else 4)
    assert sorted(slots.values()) == [0x81111111, 0x82222222, 0x83333333]
    assert name_of(read, header) == "Ghost.sys"
    assert read_pdb_record(read, header) == PdbRecord("ghost.pdb", GUID, 3)


def test_without_exports_the_pdb_names_it() -> None:
    """The name is the PDB's without its suffix where no export table has one."""
    read = Reader(built(is_64bit=True))
    header = read_header(read)
    assert header is not None
    assert name_of(read, header) == "ghost"


def test_a_discarded_import_directory() -> None:
    """Imports are read though the descriptors, in INIT with most drivers, are gone."""
    data = built(is_64bit=True)
    header = read_header(Reader(data))
    assert header is not None
    descriptors, size = header.directories[1]
    data[descriptors : descriptors + size] = bytes(size)
    assert len(read_import_addresses(Reader(data), header, 8)) == 3


def test_imports_without_a_table_of_their_own() -> None:
    """Where no directory tells of the import address table, the descriptors do."""
    data = built(is_64bit=True)
    header = read_header(Reader(data))
    assert header is not None
    directories = tuple((0, 0) if index == 12 else each for index, each in enumerate(header.directories))
    without = Header(header.machine, header.size_of_image, header.sections, directories)
    assert sorted(read_import_addresses(Reader(data), without, 8).values()) == [0x81111111, 0x82222222, 0x83333333]


def test_a_forwarder_is_understood() -> None:
    """An export whose address lies in the export table is the name of another module's function."""
    data = image([Export(b"Forwarded", DIRECTORY + 0xB00), Export(b"Own", 0x6000)])
    data[DIRECTORY + 0xB00 : DIRECTORY + 0xB00 + 15] = b"ntoskrnl.Other\0"
    exports = read_exports(Reader(data), SIZE)
    assert exports.forwarders == {"Forwarded": "ntoskrnl.Other"}
    assert exports.names == ("Own",)


def test_all_names_of_an_address() -> None:
    """An import of folded code can be any of its names."""
    data = image([Export(b"NtClose", 0x6000), Export(b"ZwClose", 0x6000), Export(b"Own", 0x6100)])
    exports = read_exports(Reader(data), SIZE)
    assert [exports.names_at(rva) for rva in (0x6000, 0x6100, 0x6001)] == [("NtClose", "ZwClose"), ("Own",), ()]


def _unwound(records: Sequence[tuple[int, int]]) -> tuple[Reader, Header]:
    data = bytearray(SIZE)
    for index, (begin, end) in enumerate(records):
        struct.pack_into("<III", data, 0x5000 + 12 * index, begin, end, 0)
    directories = ((0, 0), (0, 0), (0, 0), (0x5000, 12 * len(records)))
    return Reader(data), Header(0x8664, SIZE, (Section(".text", 0x1000, 0x4000, 0x60000020),), directories)


@pytest.mark.parametrize(
    ("rva", "size"),
    [
        pytest.param(0x1400, 0x80, id="its begin"),
        pytest.param(0x1410, 0x70, id="amid it"),
        pytest.param(0x1480, 0x180, id="no record: to the next export"),
        pytest.param(0x2000, 0x10, id="the last record"),
        pytest.param(0x4F00, 0x100, id="no record, no export: to the end of the section"),
        pytest.param(0x3000, DEFAULT_SIZE, id="nothing tells"),
    ],
)
def test_where_a_function_ends(rva: int, size: int) -> None:
    """By its unwind record, else by what comes first: next export, end of the section, a bound."""
    read, header = _unwound([(0x1000, 0x1400), (0x1400, 0x1480), (0x1700, 0x1800), (0x2000, 0x2010)])
    exports = Exports((0x1400, 0x1600), ("First", "Second"))
    assert function_size(read, header, exports, rva, SIZE) == size


NT, LOW, HIGH = (
    Driver(0x10000, 0x8000, "ntoskrnl.exe"),
    Driver(0x20000, 0x1000, "a.sys"),
    Driver(0x30000, 0x1000, "b.sys"),
)


@pytest.mark.parametrize(
    ("drivers", "owners", "conflicts"),
    [
        pytest.param(
            [NT, LOW, HIGH], {0x17FFF: "nt", 0x18000: None, 0x20000: "a", 0x20FFF: "a", 0x21000: None}, 0, id="none"
        ),
        pytest.param(
            [Driver(0x1000, 0x50000, "giant.sys"), NT, LOW, HIGH],
            {0x1000: "giant", 0x10000: "nt", 0x20800: "a", 0x21000: "giant", 0x30000: "b", 0x50FFF: "giant"},
            1,
            id="one that spans all",
        ),
        pytest.param(
            [NT, Driver(0x17000, 0x2000, "over.sys")],
            {0x17800: "nt", 0x18000: "over", 0x18FFF: "over"},
            1,
            id="one that overlaps the kernel",
        ),
        pytest.param([NT, Driver(0x11000, 0x100, "in.sys")], {0x11000: "nt"}, 1, id="one in the kernel"),
        pytest.param([LOW, Driver(0x20000, 0x1000, "twin.sys")], {0x20000: "a"}, 1, id="twice the same range"),
    ],
)
def test_the_table_of_modules(drivers: list[Driver], owners: dict[int, str | None], conflicts: int) -> None:
    """Of entries that claim an address the smallest is believed, the kernel before all; each contradiction is told."""
    table = ModuleRanges(drivers, NT.base)
    found = {address: table.find(address) for address in owners}
    assert {address: driver and driver.label for address, driver in found.items()} == owners
    assert len(table.overlaps) == conflicts


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 30)), max_size=12))
def test_no_modules_break_the_table(ranges: list[tuple[int, int]]) -> None:
    """Each address that an entry claims has an owner that claims it, and no other has one."""
    drivers = [Driver(start, size, f"{index}.sys") for index, (start, size) in enumerate(ranges)]
    table = ModuleRanges(drivers, 10)
    for address in range(95):
        owner = table.find(address)
        claiming = [driver for driver in drivers if driver.base <= address < driver.base + driver.size]
        assert (owner is None) == (not claiming)
        assert owner is None or owner in claiming


@given(
    writes=st.lists(st.tuples(st.integers(0, 0x1FC), st.integers(0, 0xFFFFFFFF)), max_size=10),
    deep=st.lists(st.tuples(st.integers(0x4000, 0x6FF0), st.integers(0, 0xFFFFFFFF)), max_size=10),
    is_64bit=st.booleans(),
)
def test_no_bytes_stop_the_reading(writes: list[tuple[int, int]], deep: list[tuple[int, int]], is_64bit: bool) -> None:
    """Whatever an image says of itself, reading it ends, within bounds, with names that may be printed."""
    data = built(is_64bit=is_64bit, exports={"GhostMain": 0x1400})
    for offset, value in [*writes, *deep]:
        struct.pack_into("<I", data, offset, value)
    read = Reader(data)
    header = read_header(read)
    if header is None:
        return
    assert len(header.sections) <= SECTIONS_BOUND
    assert len(read_import_addresses(read, header, 8 if is_64bit else 4)) <= SLOTS_BOUND
    name = name_of(read, header)
    assert name is None or (name and name.isprintable())
    assert 0 <= function_size(read, header, read_exports(read, SIZE), 0x1400, SIZE) <= SIZE
