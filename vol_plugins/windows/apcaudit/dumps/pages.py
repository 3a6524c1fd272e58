"""Arranges the known virtual memory of a minidump in physical pages, with synthesized page tables."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..windows import PAGE_SIZE

_PAGE_OFFSET = PAGE_SIZE - 1

# Intel SDM vol. 3A, 4.2 ff.: present, writable, accessed, dirty.
_ENTRY_FLAGS = 0x063
_ENTRY_PRESENT = 0x001


@dataclass(frozen=True, slots=True)
class Extent:
    """Consecutive known bytes: `data`, or `size` bytes of the file at `file_offset`."""

    address: int
    size: int
    file_offset: int | None = None
    data: bytes = b""

    @property
    def end(self) -> int:
        """The address behind the last byte."""
        return self.address + self.size

    def part(self, start: int, end: int) -> Extent:
        """Return the part [start, end) of the extent."""
        skipped = start - self.address
        if self.file_offset is not None:
            return Extent(start, end - start, self.file_offset + skipped)
        return Extent(start, end - start, None, self.data[skipped : skipped + end - start])

    def moved(self, address: int) -> Extent:
        """Return the same bytes at another address."""
        return Extent(address, self.size, self.file_offset, self.data)


@dataclass(frozen=True, slots=True)
class PagingMode:
    """A paging mode: format of an entry for `struct`, index bits per level from the top."""

    entry_format: str
    level_bits: tuple[int, ...]
    first_frame: int
    """Physical address of the first synthesized frame, above every address that a genuine page directory can have."""

    @property
    def pointer_bits(self) -> int:
        """How many bits of a virtual address are translated."""
        return sum(self.level_bits) + 12


# 16 TB: page directories are below it, and it is within the 45 physical address bits of Volatility's Intel32e layer.
X64 = PagingMode("<Q", (9, 9, 9, 9), 1 << 44)
# With PAE CR3 has 32 bits, so that the page directory pointer table is below 4 GB.
X86_PAE = PagingMode("<Q", (2, 9, 9), 1 << 32)
# Without PAE there are 4 GB in all. Devices are mapped at the top of them, so that no page directory is there.
X86 = PagingMode("<I", (10, 10), 0xE0000000)


class KnownMemory:
    """Extents by address, without overlaps; bytes that are already known are never replaced."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._extents: list[Extent] = []

    def __iter__(self) -> Iterator[Extent]:
        return iter(self._extents)

    def add(self, extent: Extent) -> int:
        """Add those bytes of an extent that are not known yet; return how many were added."""
        added = 0
        for start, end in list(self.gaps(extent.address, extent.end)):
            index = bisect_right(self._starts, start)
            self._starts.insert(index, start)
            self._extents.insert(index, extent.part(start, end))
            added += end - start
        return added

    def gaps(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the unknown ranges within [start, end)."""
        position = start
        for extent in self.within(start, end):
            if extent.address > position:
                yield position, extent.address
            position = max(position, extent.end)
        if position < end:
            yield position, end

    def within(self, start: int, end: int) -> Iterator[Extent]:
        """Yield the extents that overlap [start, end)."""
        index = max(0, bisect_right(self._starts, start) - 1)
        while index < len(self._extents) and self._extents[index].address < end:
            if self._extents[index].end > start:
                yield self._extents[index]
            index += 1

    def is_known(self, start: int, end: int) -> bool:
        """Return whether every byte of [start, end) is known."""
        return next(self.gaps(start, end), None) is None

    def is_unknown(self, start: int, end: int) -> bool:
        """Return whether no byte of [start, end) is known."""
        return next(self.within(start, end), None) is None

    def read(self, start: int, size: int, read_file: Callable[[int, int], bytes]) -> bytes | None:
        """Return the bytes of [start, start + size); None if one of them is unknown."""
        end = start + size
        if size <= 0 or not self.is_known(start, end):
            return None
        parts: list[bytes] = []
        for extent in self.within(start, end):
            part = extent.part(max(start, extent.address), min(end, extent.end))
            parts.append(part.data if part.file_offset is None else read_file(part.file_offset, part.size))
        data = b"".join(parts)
        return data if len(data) == size else None

    def pages(self) -> list[int]:
        """Return the addresses of all pages that have a known byte, ascending."""
        found: list[int] = []
        for extent in self._extents:
            first = extent.address & ~_PAGE_OFFSET
            if found and found[-1] == first:
                first += PAGE_SIZE
            found.extend(range(first, extent.end, PAGE_SIZE))
        return found


def build_page_tables(memory: KnownMemory, mode: PagingMode, top_table: int) -> tuple[KnownMemory, int]:
    """Place virtual memory in physical frames and add page tables that map them.

    Args:
        memory: the virtual memory.
        mode: the machine's paging mode.
        top_table: the page directory of the crashed machine. It is used if it is a possible address, so that processes
            that refer to it find the synthesized tables.

    Returns:
        The physical memory and the physical address of the top table.
    """
    pages = memory.pages()
    frames = {page: mode.first_frame + number * PAGE_SIZE for number, page in enumerate(pages)}
    physical = KnownMemory()
    for extent in memory:
        for start, end in _page_parts(extent, frames):
            physical.add(extent.part(start, end).moved(frames[start & ~_PAGE_OFFSET] + (start & _PAGE_OFFSET)))
    next_frame = mode.first_frame + len(pages) * PAGE_SIZE
    top_size = PAGE_SIZE
    alignment = struct.calcsize(mode.entry_format) << mode.level_bits[0]
    if not 0 < top_table <= mode.first_frame - top_size or top_table % min(alignment, PAGE_SIZE):
        top_table, next_frame = next_frame, next_frame + PAGE_SIZE
    for address, table in _tables(frames, mode, top_table, next_frame).items():
        physical.add(Extent(address, len(table), None, bytes(table)))
    return physical, top_table


def _page_parts(extent: Extent, frames: dict[int, int]) -> Iterator[tuple[int, int]]:
    # Frames are assigned in order of address, so that consecutive pages have consecutive frames: mostly one part.
    start = extent.address
    while start < extent.end:
        end = min(extent.end, (start & ~_PAGE_OFFSET) + PAGE_SIZE)
        while end < extent.end and frames[end] == frames[end - PAGE_SIZE] + PAGE_SIZE:
            end = min(extent.end, end + PAGE_SIZE)
        yield start, end
        start = end


def _tables(frames: dict[int, int], mode: PagingMode, top_table: int, next_frame: int) -> dict[int, bytearray]:
    tables = {top_table: bytearray(PAGE_SIZE)}
    below: dict[tuple[int, int], int] = {}
    entry_size = struct.calcsize(mode.entry_format)
    for page, frame in frames.items():
        table, shift = top_table, mode.pointer_bits
        for level, bits in enumerate(mode.level_bits):
            shift -= bits
            index = (page >> shift) & ((1 << bits) - 1)
            if level == len(mode.level_bits) - 1:
                target, flags = frame, _ENTRY_FLAGS
            else:
                key = (level, page >> shift)
                if key not in below:
                    below[key] = next_frame
                    tables[next_frame] = bytearray(PAGE_SIZE)
                    next_frame += PAGE_SIZE
                # The entries of PAE's page directory pointer table have no writable, accessed or dirty bit.
                target, flags = below[key], _ENTRY_PRESENT if bits == 2 else _ENTRY_FLAGS
            struct.pack_into(mode.entry_format, tables[table], index * entry_size, target | flags)
            table = target
    return tables
