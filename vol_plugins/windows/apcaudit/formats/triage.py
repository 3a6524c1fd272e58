"""Parses a kernel minidump (triage dump): its memory blocks, driver lists and debugger data, and its defects.

Reads through a function, independent of where the bytes come from. A wrong count or offset loses the data that it
refers to and is reported in `defects`; only a file that is not a minidump at all is an error.

Sources of the layouts: Dump.h (Microsoft Research, Singularity) for DUMP_UNLOADED_DRIVERS64, DUMP_STRING and
TRIAGE_DATA_BLOCK; KLDR_DATA_TABLE_ENTRY32 and KLDR_DATA_TABLE_ENTRY64 ("do not grow this structure, dump files use a
packed array of it") as the debuggers' headers give them. The 64-bit ones were compared with a genuine dump.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from .crash_header import DUMP_HEADER64_SIZE, DUMP_TYPE_TRIAGE, CrashHeader, parse_crash_header
from .files import ReadFile
from .triage_defects import MOST_UNLOADED_DRIVERS, find_defects, next_part
from .triage_header import (
    TRIAGE_DUMP_BROKEN_DRIVER,
    TRIAGE_DUMP_DATA_BLOCKS,
    TRIAGE_DUMP_DATAPAGE,
    TRIAGE_DUMP_DEBUGGER_DATA,
    TRIAGE_DUMP_DRIVER_LIST,
    DebuggerData,
    TriageHeader,
    parse_debugger_data,
    parse_triage_header,
    triage_header_size,
)

# Bounds for damaged or hostile files, larger than Windows writes (a genuine dump had 151 drivers and 1831 blocks).
_MOST_DRIVERS = 4096
_MOST_DATA_BLOCKS = 1 << 15
_LONGEST_DRIVER_NAME = 1024
_LARGEST_DEBUGGER_DATA = 0x1000
_MOST_MEMORY = 1 << 27
_MOST_DEFECTS = 32
_BLOCK = struct.Struct("<QII")  # TRIAGE_DATA_BLOCK: Address, Offset, Size
_REGION = 21  # one page table maps 1 << 21 bytes on x64 and with PAE
_MOST_REGIONS = 4096  # each costs up to three page tables


class MinidumpError(ValueError):
    """The file is not a kernel minidump."""


@dataclass(frozen=True, slots=True)
class DataBlock:
    """A range of virtual memory that the file holds."""

    address: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class DumpDriver:
    """An entry of the dump's driver list; the name is None where it could not be read."""

    name: str | None
    base: int
    size: int
    checksum: int
    timestamp: int


@dataclass(frozen=True, slots=True)
class DumpUnloadedDriver:
    """A driver that had been unloaded; a dump has at most 12 characters of its name."""

    name: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Minidump:
    """A parsed kernel minidump."""

    header: CrashHeader
    triage: TriageHeader
    debugger_data: DebuggerData | None
    data_blocks: tuple[DataBlock, ...]
    drivers: tuple[DumpDriver, ...]
    unloaded_drivers: tuple[DumpUnloadedDriver, ...]
    broken_driver: str | None
    defects: tuple[str, ...]
    file_size: int

    @property
    def kernel(self) -> DumpDriver | None:
        """The kernel's entry of the driver list: the one at KernBase; without debugger data the first entry."""
        if self.debugger_data is not None:
            return next((d for d in self.drivers if d.base == self.debugger_data.kern_base), None)
        return self.drivers[0] if self.drivers else None


@dataclass(frozen=True, slots=True)
class _DriverLayout:
    """Offsets in DUMP_DRIVER_ENTRY32/64: the name's file offset, then a KLDR_DATA_TABLE_ENTRY32/64."""

    size: int
    pointer: str
    dll_base: int
    size_of_image: int
    checksum: int
    timestamp: int
    unloaded_count_size: int
    unloaded: struct.Struct


_LAYOUT32 = _DriverLayout(0x4C, "<I", 0x1C, 0x24, 0x44, 0x48, 4, struct.Struct("<H6x24sII"))
_LAYOUT64 = _DriverLayout(0x90, "<Q", 0x38, 0x48, 0x80, 0x88, 8, struct.Struct("<H14x24sQQ"))


def parse_minidump(read: ReadFile, file_size: int) -> Minidump:
    """Parse a kernel minidump of `file_size` bytes.

    Raises:
        MinidumpError: the file is not a kernel minidump or ends before its headers do.
    """
    start = read(0, DUMP_HEADER64_SIZE)
    header = parse_crash_header(start)
    if header is None:
        raise MinidumpError("no crash dump header")
    if header.dump_type != DUMP_TYPE_TRIAGE:
        raise MinidumpError(f"DumpType {header.dump_type} is not that of a minidump")
    if header.is_encrypted:
        raise MinidumpError("all behind its header is encrypted: decrypt it with the key that the machine was given")
    triage = parse_triage_header(read(header.header_size, triage_header_size(header.is_64bit)), header.is_64bit)
    if triage is None:
        raise MinidumpError("the file ends before the header of the minidump does")
    parser = _Parser(read, file_size, header, triage)
    debugger_data = parser.debugger_data()
    drivers = parser.drivers()
    return Minidump(
        header=header,
        triage=triage,
        debugger_data=debugger_data,
        data_blocks=parser.data_blocks(),
        drivers=drivers,
        unloaded_drivers=parser.unloaded_drivers(),
        broken_driver=parser.broken_driver(),
        defects=parser.all_defects(),
        file_size=file_size,
    )


class _Parser:
    """Reads the parts of one file within the bounds, and collects their defects."""

    def __init__(self, read: ReadFile, file_size: int, header: CrashHeader, triage: TriageHeader) -> None:
        self._read = read
        self._file_size = file_size
        self._header = header
        self._triage = triage
        self._layout = _LAYOUT64 if header.is_64bit else _LAYOUT32
        self._address_mask = (1 << (64 if header.is_64bit else 32)) - 1
        self._memory_left = min(file_size, _MOST_MEMORY)
        self._regions: set[int] = set()
        self._blocks_seen = self._bytes_missing = 0
        self._short_blocks: list[int] = []
        self._defects = list(find_defects(header, triage, read, file_size))

    def all_defects(self) -> tuple[str, ...]:
        more = len(self._defects) - _MOST_DEFECTS
        return tuple(self._defects[:_MOST_DEFECTS]) + ((f"{more} more defects",) if more > 0 else ())

    def _table(self, what: str, offset: int, count: int, entry_size: int, most: int) -> bytes:
        # Only as many complete entries as fit in front of the next part.
        if not offset or not count:
            return b""
        room = next_part(self._triage, offset, self._file_size) - offset
        kept = max(0, min(count, most, room // entry_size))
        if 0 < kept < count:
            self._tell_fewer(what, kept, count)
        return self._read(offset, kept * entry_size) if kept else b""

    def _tell_fewer(self, what: str, kept: int, count: int) -> None:
        self._defects.append(f"the minidump lacks {count - kept:,} of the {count:,} {what} that it claims")

    def debugger_data(self) -> DebuggerData | None:
        size = min(self._triage.debugger_data_size, _LARGEST_DEBUGGER_DATA)
        if not self._header.claims(TRIAGE_DUMP_DEBUGGER_DATA) or not self._triage.debugger_data_offset or not size:
            return None
        data = self._read(self._triage.debugger_data_offset, size)
        found = parse_debugger_data(data, self._header.is_64bit)
        if found is None and data:
            self._defects.append("the minidump lacks the kernel's addresses: its debugger data block is damaged")
        return found

    def data_blocks(self) -> tuple[DataBlock, ...]:
        blocks: list[DataBlock] = []
        if self._header.claims(TRIAGE_DUMP_DATAPAGE) and self._triage.data_page_size:
            page = self._triage
            self._add_block(blocks, page.data_page_address, page.data_page_offset, page.data_page_size)
        if self._header.claims(TRIAGE_DUMP_DATA_BLOCKS):
            start, count = self._triage.data_blocks_offset, self._triage.data_blocks_count
            table = self._table("blocks of memory", start, count, _BLOCK.size, _MOST_DATA_BLOCKS)
            end = start + len(table)
            for number, (address, offset, size) in enumerate(_BLOCK.iter_unpack(table)):
                if start + number * _BLOCK.size >= end:
                    self._tell_fewer("blocks of memory", number, len(table) // _BLOCK.size)
                    break
                # The memory of the blocks lies behind their table.
                end = min(end, offset) if offset > start else end
                self._add_block(blocks, address & self._address_mask, offset, size)
        self._tell_missing_blocks()
        blocks.sort(key=lambda block: block.address)
        self._tell_contradicting_blocks(blocks)
        return tuple(blocks)

    def _add_block(self, blocks: list[DataBlock], address: int, offset: int, size: int) -> None:
        # Blocks never share bytes of the file. More memory than the file has bytes is impossible, and costly to map.
        kept = max(0, min(size, self._file_size - offset, self._address_mask + 1 - address, self._memory_left))
        regions = range(address >> _REGION, (address + max(kept, 1) - 1 >> _REGION) + 1)
        if len(self._regions) + len(regions) > _MOST_REGIONS and not self._regions.issuperset(regions):
            # Single bytes at many distant addresses would need page tables a thousand times their size.
            kept = 0
        self._memory_left -= kept
        self._blocks_seen += 1
        if kept < size:
            self._short_blocks.append(address)
            self._bytes_missing += size - kept
        if kept:
            self._regions.update(regions)
            blocks.append(DataBlock(address, offset, kept))

    def _tell_missing_blocks(self) -> None:
        short = self._short_blocks
        if short:
            others = f" and {len(short) - 1:,} more" if len(short) > 1 else ""
            self._defects.append(
                f"the minidump lacks {self._bytes_missing:,} bytes: {len(short):,} of its {self._blocks_seen:,} blocks"
                f" of memory are not there or not whole, at {short[0]:#x}{others}"
            )

    def _tell_contradicting_blocks(self, blocks: list[DataBlock]) -> None:
        """Note the blocks that share addresses and differ there; Windows itself writes some memory twice."""
        found = []
        before = None
        for block in blocks:
            if before is not None and block.address < before.address + before.size:
                shared = min(before.address + before.size, block.address + block.size) - block.address
                skipped = block.address - before.address
                if self._read(before.offset + skipped, shared) != self._read(block.offset, shared):
                    found.append((before.address, block.address))
            if before is None or block.address + block.size > before.address + before.size:
                before = block
        if found:
            first, second = found[0]
            others = f", and so do {len(found) - 1:,} more" if len(found) > 1 else ""
            self._defects.append(
                f"the minidump contradicts itself: its blocks of memory at {first:#x} and {second:#x} differ where they"
                f" overlap{others}; the bytes of the lower one are taken"
            )

    def drivers(self) -> tuple[DumpDriver, ...]:
        if not self._header.claims(TRIAGE_DUMP_DRIVER_LIST):
            return ()
        layout = self._layout
        table = self._table(
            "drivers", self._triage.driver_list_offset, self._triage.driver_count, layout.size, _MOST_DRIVERS
        )
        found: list[DumpDriver] = []
        nameless = []
        for start in range(0, len(table), layout.size):
            entry = table[start : start + layout.size]
            (name_offset,) = struct.unpack_from("<I", entry)
            (base,) = struct.unpack_from(layout.pointer, entry, layout.dll_base)
            (size,) = struct.unpack_from("<I", entry, layout.size_of_image)
            (checksum,) = struct.unpack_from("<I", entry, layout.checksum)
            (timestamp,) = struct.unpack_from("<I", entry, layout.timestamp)
            name = self._dump_string(name_offset)
            if name is None:
                nameless.append(base)
            found.append(DumpDriver(name, base, size, checksum, timestamp))
        if nameless:
            others = f" and {len(nameless) - 1:,} more" if len(nameless) > 1 else ""
            self._defects.append(
                f"the minidump lacks the names of {len(nameless):,} of its {len(found):,} drivers: at"
                f" {nameless[0]:#x}{others}"
            )
        return tuple(found)

    def _dump_string(self, offset: int) -> str | None:
        # DUMP_STRING: the length in characters (Dump.h says bytes; the genuine dump counts characters), then UTF-16.
        prefix = self._read(offset, 4) if offset else b""
        count = int.from_bytes(prefix, "little")
        if len(prefix) < 4 or not 0 < count <= _LONGEST_DRIVER_NAME:
            return None
        text = self._read(offset + 4, count * 2)
        if len(text) < count * 2:
            return None
        return text.decode("utf-16-le", "replace").split("\0")[0]

    def unloaded_drivers(self) -> tuple[DumpUnloadedDriver, ...]:
        offset = self._triage.unloaded_drivers_offset
        if not offset:
            return ()
        count = int.from_bytes(self._read(offset, 4), "little")
        entry = self._layout.unloaded
        first = offset + self._layout.unloaded_count_size
        table = self._table("unloaded drivers", first, count, entry.size, MOST_UNLOADED_DRIVERS)
        return tuple(
            DumpUnloadedDriver(
                name[: min(length, len(name)) & ~1].decode("utf-16-le", "replace").rstrip("\0"), start, end
            )
            for length, name, start, end in entry.iter_unpack(table)
        )

    def broken_driver(self) -> str | None:
        if not self._header.claims(TRIAGE_DUMP_BROKEN_DRIVER):
            return None
        return self._dump_string(self._triage.broken_driver_offset)
