"""The parsers of bytes, each as a function that takes any bytes and checks what must hold of whatever comes out."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import astuple, is_dataclass
from typing import Any

READS = 200_000
"""How many reads a parser may take for one input."""

_SIZE = 1 << 20  # of the images that the parsers of PE take an input to be: it lies at their start

Parser = Callable[[bytes], None]


class BrokenPromiseError(AssertionError):
    """What must hold does not."""


class _Reader:
    """Reads (offset, length) of the input; `whole` gives None for what is not all there, else what there is."""

    def __init__(self, data: bytes, *, whole: bool) -> None:
        self._data = data
        self._whole = whole
        self._reads = 0

    def __call__(self, offset: int, length: int) -> Any:
        self._reads += 1
        if self._reads > READS:
            raise BrokenPromiseError(f"more than {READS} reads")
        if offset < 0 or length < 0:
            raise BrokenPromiseError(f"a read of {length} bytes at {offset}")
        data = self._data[offset : offset + length]
        return None if self._whole and len(data) < length else data


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for each in value.items() for text in _texts(each)]
    if is_dataclass(value) and not isinstance(value, type):
        return _texts(astuple(value))
    if isinstance(value, tuple | list | set | frozenset):
        return [text for each in value for text in _texts(each)]
    return []


def _require_printable(*values: Any) -> None:
    for text in (text for value in values for text in _texts(value)):
        if not text.isprintable():
            raise BrokenPromiseError(f"{text!r} can act on a terminal")


def pe(data: bytes) -> None:
    """Headers, exports, imports, names and the ends of functions of a PE image."""
    from volatility3.plugins.windows.apcaudit.formats.pe import (
        NAMES_BOUND,
        SECTIONS_BOUND,
        SLOTS_BOUND,
        name_of,
        read_exports,
        read_header,
        read_import_addresses,
        read_pdb_record,
    )
    from volatility3.plugins.windows.apcaudit.formats.unwind_info import function_size

    read = _Reader(data, whole=True)
    header = read_header(read)
    exports = read_exports(read, _SIZE)
    if len(exports.names) > NAMES_BOUND or list(exports.addresses) != sorted(set(exports.addresses)):
        raise BrokenPromiseError("exports")
    _require_printable(exports.names, dict(exports.forwarders))
    for rva in (0, 0x1000, _SIZE - 1):
        exports.nearest(rva)
        if not 0 <= function_size(read, header, exports, rva, _SIZE) <= _SIZE:
            raise BrokenPromiseError("the size of a function")
    if header is None:
        return
    if len(header.sections) > SECTIONS_BOUND:
        raise BrokenPromiseError("sections")
    _require_printable(header.sections, name_of(read, header), read_pdb_record(read, header))
    for size in (4, 8):
        if len(read_import_addresses(read, header, size)) > SLOTS_BOUND:
            raise BrokenPromiseError("imports")


def unwind(data: bytes) -> None:
    """The function table and unwind data of an x64 image, and a step out of a function by them."""
    from volatility3.plugins.windows.apcaudit.formats.unwind_info import FunctionTable, RuntimeFunction
    from volatility3.plugins.windows.apcaudit.unwind.registers import Registers
    from volatility3.plugins.windows.apcaudit.unwind.x64 import unwind as step_out

    read = _Reader(data, whole=True)

    def word(address: int) -> int | None:
        part = read(address, 8) if address >= 0 else None
        return None if part is None else struct.unpack("<Q", part)[0]

    registers = Registers(0x1010, tuple(range(0x2000, 0x2000 + 8 * 16, 8)))
    table = FunctionTable(read, _SIZE)
    for exact in (False, True):
        found = table.find(0x1010)
        for function in (found, RuntimeFunction(0x1000, 0x1100, 0x40)):
            if isinstance(function, RuntimeFunction):
                step_out(registers, word, read, function, 0, exact=exact)


def minidump(data: bytes) -> None:
    """A kernel minidump: its headers and tables, the memory in it, and the page tables made for that."""
    from volatility3.plugins.windows.apcaudit.dumps.minidump_memory import dumped_memory
    from volatility3.plugins.windows.apcaudit.dumps.pages import X64, X86, X86_PAE, build_page_tables
    from volatility3.plugins.windows.apcaudit.formats.triage import MinidumpError, parse_minidump

    read = _Reader(data, whole=False)
    try:
        dump = parse_minidump(read, len(data))
    except MinidumpError:
        return
    if sum(block.size for block in dump.data_blocks) > len(data):
        raise BrokenPromiseError("more memory than the file has bytes")
    _require_printable(dump.defects)
    dumped = dumped_memory(dump, read, None)
    mode = X64 if dump.header.is_64bit else X86_PAE if dump.header.pae_enabled else X86
    memory, top = build_page_tables(dumped.memory, mode, dump.header.directory_table_base)
    memory.read(top, 8, read)


def page_bitmap(data: bytes) -> None:
    """The bitmap of a kernel memory dump: its runs are in order, and within the number of pages that it has."""
    from volatility3.plugins.windows.apcaudit.dumps.kernel_dump import PAGES_BOUND, find_bitmap, page_runs
    from volatility3.plugins.windows.apcaudit.formats.crash_header import parse_crash_header

    read = _Reader(data, whole=False)
    header = parse_crash_header(data)
    bitmap = None if header is None else find_bitmap(header, read)
    if bitmap is None:
        return
    end = 0
    for first, count in page_runs(bitmap, read):
        if first < end or count <= 0:
            raise BrokenPromiseError(f"pages {first}, {count}")
        end = first + count
    if end > min(bitmap.bits, PAGES_BOUND, len(data) * 8):
        raise BrokenPromiseError("more pages than the bitmap has")


def crash_header(data: bytes) -> None:
    """The header of a crash dump, and the registers in it."""
    from volatility3.plugins.windows.apcaudit.formats.crash_header import parse_crash_header
    from volatility3.plugins.windows.apcaudit.unwind.registers import registers_from_context

    header = parse_crash_header(data)
    if header is not None:
        registers_from_context(header.context_record, header.pointer_size)
        for part in (1, 4, 0x800):
            header.claims(part)


def lime(data: bytes) -> None:
    """The headers of a LiME image's ranges: what is given of it lies in the file, and in order."""
    from volatility3.plugins.windows.apcaudit.dumps.cut import RANGES_BOUND, parse_lime

    found = parse_lime(_Reader(data, whole=False), len(data))
    if found is None:
        return
    _require_printable(found.cut or "")
    end = 0
    for each in found.ranges:
        if each.start < end or not 0 < each.present <= each.size or each.offset + each.present > len(data):
            raise BrokenPromiseError(f"{each}")
        end = each.start + each.size
    whole = all(each.present == each.size for each in found.ranges)
    if len(found.ranges) > RANGES_BOUND or (found.cut is None and not whole):
        raise BrokenPromiseError("ranges")


def debugger_data(data: bytes) -> None:
    """KDDEBUGGER_DATA64."""
    from volatility3.plugins.windows.apcaudit.formats.triage_header import parse_debugger_data

    for is_64bit in (False, True):
        parse_debugger_data(data, is_64bit)


def text(data: bytes) -> None:
    """Names out of an image."""
    from volatility3.plugins.windows.apcaudit.formats.text import LONGEST, from_ansi, from_utf16, printable

    for shown in (from_ansi(data), from_utf16(data), printable(data.decode("utf-8", "replace"))):
        _require_printable(shown)
        # An escape has ten characters at most; a cut text ends in three dots.
        if len(shown) > 10 * LONGEST + 3:
            raise BrokenPromiseError(f"{shown[:20]!r}")


def lists(data: bytes) -> None:
    """A LIST_ENTRY ring in 64 KiB of memory whose bytes are the input."""
    from volatility3.plugins.windows.apcaudit.formats.lists import ENTRY_BOUND, walk

    def links(address: int) -> tuple[int, int] | None:
        part = data[address : address + 8]
        return None if len(part) < 8 else struct.unpack("<II", part)

    walked = walk(links, 0, pointer_size=4)
    if len(walked.entries) > ENTRY_BOUND or len(set(walked.entries)) != len(walked.entries):
        raise BrokenPromiseError("entries")


def symbol_file(data: bytes) -> None:
    """A symbol file: its JSON, and what the search for a minidump's kernel takes of it."""
    import io

    from volatility3.plugins.windows.apcaudit.dumps.kernel_match import kernel_symbols_from_isf
    from volatility3.plugins.windows.apcaudit.formats import symbol_file as files

    try:
        document = files.load(io.BytesIO(data))
    except files.SymbolFileError:
        return
    kernel_symbols_from_isf("file:x", document)


PARSERS: dict[str, Parser] = {
    each.__name__: each
    for each in (pe, unwind, minidump, page_bitmap, crash_header, lime, debugger_data, text, lists, symbol_file)
}
