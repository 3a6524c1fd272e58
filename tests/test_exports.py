"""The export table of an image in memory: what it names, and what its lies cost."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from volatility3.plugins.windows.apcaudit.formats.pe import NAME_BOUND, NAMES_BOUND, Exports, read_exports
from volatility3.plugins.windows.apcaudit.image.symbols import preferred_name

SIZE = 0x8000
PE, DIRECTORY, TABLES, NAMES = 0x80, 0x1000, 0x1100, 0x3000


@dataclass(frozen=True)
class Export:
    """A name, the ordinal index that it stands for, and what lies in the address table there."""

    name: bytes
    rva: int
    ordinal: int | None = None


def image(
    exports: Sequence[Export],
    *,
    magic: int = 0x20B,
    directory_size: int = 0x4000,
    functions: int | None = None,
    names: int | None = None,
    names_at: int = NAMES,
    name_rvas: Sequence[int] | None = None,
) -> bytearray:
    """Write a PE image as it lies in memory, with these exports and, where given, with lies about them."""
    data = bytearray(SIZE)
    data[0:2] = b"MZ"
    struct.pack_into("<I", data, 0x3C, PE)
    data[PE : PE + 4] = b"PE\0\0"
    optional = PE + 24
    struct.pack_into("<H", data, optional, magic)
    directories = optional + (112 if magic == 0x20B else 96)
    struct.pack_into("<III", data, directories - 4, 16, DIRECTORY, directory_size)
    count = len(exports)
    function_table, name_table, ordinal_table = TABLES, TABLES + 0x400, TABLES + 0x800
    struct.pack_into(
        "<IIHHIIIIIII",
        data,
        DIRECTORY,
        *(0, 0, 0, 0, 0, 1),
        count if functions is None else functions,
        count if names is None else names,
        *(function_table, name_table, ordinal_table),
    )
    at = names_at
    for index, export in enumerate(exports):
        struct.pack_into("<I", data, function_table + 4 * index, export.rva)
        struct.pack_into("<I", data, name_table + 4 * index, at if name_rvas is None else name_rvas[index])
        struct.pack_into("<H", data, ordinal_table + 2 * index, index if export.ordinal is None else export.ordinal)
        data[at : at + len(export.name) + 1] = export.name + b"\0"
        at += len(export.name) + 1
    return data


class Reader:
    """Reads an image's bytes, but for pages that are not in memory; keeps the furthest byte asked for."""

    def __init__(self, data: bytes, missing: Sequence[int] = ()) -> None:
        self.data = bytes(data)
        self.missing = missing
        self.furthest = 0

    def __call__(self, rva: int, length: int) -> bytes | None:
        """Return bytes of the image, None where a page of them is missing."""
        self.furthest = max(self.furthest, rva + length)
        pages = range(rva // 0x1000, (rva + length - 1) // 0x1000 + 1)
        if length <= 0 or rva + length > len(self.data) or any(page * 0x1000 in self.missing for page in pages):
            return None
        return self.data[rva : rva + length]


BFILTER = [Export(b"ScUnInitExcludePath", 0x6850), Export(b"DllUnload", 0x6100), Export(b"ScInit", 0x6400)]


@pytest.mark.parametrize("magic", [0x10B, 0x20B])
def test_names_by_address(magic: int) -> None:
    """The exports of a 32-bit and of a 64-bit image are sorted by address."""
    exports = read_exports(Reader(image(BFILTER, magic=magic, directory_size=0x1000)), SIZE)
    assert exports == Exports((0x6100, 0x6400, 0x6850), ("DllUnload", "ScInit", "ScUnInitExcludePath"))


@pytest.mark.parametrize(
    ("rva", "expected"),
    [
        (0x60FF, None),
        (0x6100, ("DllUnload", 0)),
        (0x63FF, ("DllUnload", 0x2FF)),
        (0x6870, ("ScUnInitExcludePath", 0x20)),
    ],
)
def test_the_nearest_name(rva: int, expected: tuple[str, int] | None) -> None:
    """An address has the name at or below it, none where it lies below all of them."""
    exports = read_exports(Reader(image(BFILTER)), SIZE)
    assert exports.nearest(rva) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        # The names that share an address in public PDBs: Windows 10 (19041) x64, XP SP3.
        (["BgpFwGetCurrentIrql", "KeGetCurrentIrql"], "KeGetCurrentIrql"),
        (["IoGetCurrentProcess", "PsGetCurrentProcess"], "PsGetCurrentProcess"),
        (["?RtlUnicodeStringInit@@YAJPEAU_UNICODE_STRING@@PEBG@Z", "RtlUnicodeStringInit"], "RtlUnicodeStringInit"),
        (["KxStartSystemThread", "KiStartSystemThread"], "KiStartSystemThread"),
        (["PspQueueApcSpecialApc", "AlpcpFreeBuffer", "ExFreeCallBack"], "PspQueueApcSpecialApc"),
        (["SmWdWritesApcRundown", "KiSuspendNop", "PoStartNextPowerIrp"], "KiSuspendNop"),
    ],
)
def test_names_of_folded_code(names: list[str], expected: str) -> None:
    """Of a symbol table's names for one address an APC routine's is printed, else the one that the WDK documents."""
    assert preferred_name(names) == expected


def test_no_exports_name_nothing() -> None:
    """An image without exports names no address."""
    assert Exports().nearest(0x1000) is None


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(
            image([Export(b"Forwarded", DIRECTORY + 0x900), Export(b"Own", 0x6000)]), ["Own"], id="a forwarder"
        ),
        pytest.param(
            image([Export(b"Outside", SIZE), Export(b"Own", 0x6000)]), ["Own"], id="an address beyond the image"
        ),
        pytest.param(image([Export(b"Null", 0), Export(b"Own", 0x6000)]), ["Own"], id="an address of 0"),
        pytest.param(
            image([Export(b"Far", 0x6100, 2), Export(b"Own", 0x6000)]), ["Own"], id="an ordinal beyond the table"
        ),
        pytest.param(
            image([Export(b"Second", 0, 1), Export(b"First", 0x6000, 1)]), ["First"], id="two names of one function"
        ),
        pytest.param(image([Export(b"Zw", 0x6000), Export(b"Nt", 0x6000)]), ["Nt"], id="two functions at one address"),
        pytest.param(
            image([Export(b"KeWaitForMutexObject", 0x6000), Export(b"KeWaitForSingleObject", 0x6000)]),
            ["KeWaitForSingleObject"],
            id="another name of a documented routine",
        ),
        pytest.param(
            image([Export(b"\x1b[2J", 0x6000), Export(b"Own", 0x6100)]), ["Own"], id="a name that a terminal acts on"
        ),
        pytest.param(
            image([Export(b"\xffabc", 0x6000), Export(b"Own", 0x6100)]), ["Own"], id="a name that is no ASCII"
        ),
        pytest.param(image([Export(b"", 0x6000), Export(b"Own", 0x6100)]), ["Own"], id="an empty name"),
        pytest.param(
            image([Export(b"Lost", 0x6000), Export(b"Own", 0x6100)], name_rvas=[SIZE + 5, NAMES + 5]),
            ["Own"],
            id="a name beyond the image",
        ),
        pytest.param(
            image(BFILTER, functions=2), ["DllUnload", "ScUnInitExcludePath"], id="fewer functions than names"
        ),
        pytest.param(image(BFILTER, functions=0), [], id="no functions"),
        pytest.param(image(BFILTER, names=0), [], id="no names"),
        pytest.param(image(BFILTER, functions=0xFFFFFFFF, names=0xFFFFFFFF), [], id="counts that no image holds"),
        pytest.param(image(BFILTER, magic=0x107), [], id="no PE32 or PE32+"),
        pytest.param(b"\0" * SIZE, [], id="zeros"),
        pytest.param(b"MZ" + b"\xff" * (SIZE - 2), [], id="a header that points nowhere"),
        pytest.param(b"", [], id="nothing"),
    ],
)
def test_an_image_that_lies(data: bytes, expected: list[str]) -> None:
    """What points out of the image, or names nothing that may be printed, is left out; the rest is kept."""
    reader = Reader(data)
    assert list(read_exports(reader, SIZE).names) == expected
    assert reader.furthest <= SIZE + NAME_BOUND


def test_what_of_the_names_is_not_known() -> None:
    """Names that cannot be read, and such as are in no order, are told from a table that has none."""
    ordered, forwarders = [Export(b"A", 0x6000), Export(b"B", 0x6100)], [Export(b"A", DIRECTORY + 0x900)]
    unreadable = [Export(b"A", 0x6000), Export(b"\xff", 0x6100)]
    cases = {"ordered": ordered, "reversed": ordered[::-1], "forwarders": forwarders, "unreadable": unreadable}
    found = {name: read_exports(Reader(image(each)), SIZE) for name, each in cases.items()}
    assert [name for name, each in found.items() if each.disordered] == ["reversed"]
    assert [name for name, each in found.items() if each.unread] == ["unreadable"]
    assert read_exports(Reader(image(ordered, name_rvas=[SIZE, SIZE])), SIZE).unread
    assert not read_exports(Reader(image([])), SIZE).unread


@pytest.mark.parametrize("table", [28, 32, 36])
def test_a_table_beyond_the_image_is_not_followed(table: int) -> None:
    """Another module's memory behind the image is no part of its export table."""
    data = image(BFILTER)
    struct.pack_into("<I", data, DIRECTORY + table, SIZE)
    beyond = bytes(data) + bytes(image(BFILTER))[TABLES : TABLES + 0x1000]
    assert read_exports(Reader(beyond), SIZE) == Exports()


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        pytest.param([0x0], [], id="the headers"),
        pytest.param([0x1000], [], id="the tables"),
        pytest.param([0x3000], ["DllUnload", "ScInit"], id="the first name's page"),
        pytest.param([0x4000], [], id="where the first name goes on, and the others"),
        pytest.param([0x6000], ["DllUnload", "ScInit", "ScUnInitExcludePath"], id="the code"),
    ],
)
def test_pages_that_are_not_in_memory(missing: list[int], expected: list[str]) -> None:
    """A name is given whole or not at all: one that goes on in a page that cannot be read is not cut."""
    data = image(BFILTER, names_at=0x4000 - 10)
    assert list(read_exports(Reader(data, missing), SIZE).names) == expected


def test_a_name_at_the_end_of_the_last_readable_page() -> None:
    """A name that ends with its page is read though the next page cannot be."""
    data = image([Export(b"ScUnInitExcludePath", 0x6850)], names_at=0x4000 - 20)
    assert read_exports(Reader(data, [0x4000]), SIZE).names == ("ScUnInitExcludePath",)


def test_a_long_name_is_cut() -> None:
    """A name is read to a bound."""
    exports = read_exports(Reader(image([Export(b"x" * 500, 0x6000)])), SIZE)
    assert exports.names == ("x" * NAME_BOUND,)


def test_the_bound_on_names_holds_the_kernel() -> None:
    """Twice the exports of any kernel fit below the bound."""
    assert NAMES_BOUND >= 2 * 3_500


@given(
    writes=st.lists(st.tuples(st.integers(0, 0x120), st.integers(0, 0xFFFFFFFF)), max_size=8),
    tables=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 0xFFFFFFFF)), max_size=4),
)
def test_no_bytes_stop_the_reading(writes: list[tuple[int, int]], tables: list[tuple[int, int]]) -> None:
    """Whatever an image's headers say, reading ends with sorted addresses inside the image and printable names."""
    data = image(BFILTER)
    for offset, value in [*writes, *((DIRECTORY + at, value) for at, value in tables)]:
        struct.pack_into("<I", data, offset, value)
    exports = read_exports(Reader(data), SIZE)
    assert list(exports.addresses) == sorted(set(exports.addresses))
    assert all(0 < address < SIZE for address in exports.addresses)
    assert all(name.isprintable() and name for name in exports.names)
