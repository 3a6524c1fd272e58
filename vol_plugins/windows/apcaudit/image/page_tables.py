"""Page tables: the search for those of an image, the virtual addresses of physical pages, and regions of the kernel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from struct import Struct
from types import SimpleNamespace
from typing import Any

from volatility3.framework import constants, interfaces
from volatility3.framework.automagic import windows

from ..windows import PAGE_SIZE, SHARED_USER_DATA
from . import Memory

TABLE_BOUND = 1 << 18
"""How many page tables are read; a terabyte mapped in 4 KiB pages has twice as many."""

_PRESENT = 1
_LARGE_PAGE = 1 << 7  # the PS bit of a directory entry (Intel SDM volume 3, 4.3 to 4.5)


def kernel_addresses(memory: Memory, pages: Iterable[int], lowest: int) -> dict[int, int]:
    """Find the kernel-space virtual addresses at which physical pages are mapped.

    Each table is read once, so that the self-map of Windows' page tables does not cause an endless walk.

    Args:
        memory: the image.
        pages: physical addresses of pages.
        lowest: virtual address at which kernel space begins.

    Returns:
        The lowest virtual address of each mapped page, by its physical address. Pages that are not mapped are missing.
    """
    wanted = {page & ~(PAGE_SIZE - 1) for page in pages}
    found: dict[int, int] = {}
    if not wanted:
        return found
    paging = memory.paging
    unpack = Struct("<" + ("I" if paging.entry_size == 4 else "Q") * (PAGE_SIZE // paging.entry_size)).unpack
    width = sum(paging.index_bits) + 12
    lowest &= (1 << width) - 1
    seen = {paging.top}
    level = [(paging.top, 0)]
    shift = width
    for depth, bits in enumerate(paging.index_bits):
        shift -= bits
        leaf = depth == len(paging.index_bits) - 1
        below: list[tuple[int, int]] = []
        for table, base in level:
            # PAE's page directory pointer table has 32 bytes and shares its page with other data.
            length = paging.entry_size << bits
            data = memory.read_physical(table, length)
            if data is None:
                continue
            entries = unpack(data.ljust(PAGE_SIZE, b"\0"))[: 1 << bits]
            if leaf and wanted.isdisjoint([entry & paging.frame_mask for entry in entries]):
                continue
            for index, entry in enumerate(entries):
                address = base + (index << shift)
                if not entry & _PRESENT or address + (1 << shift) <= lowest:
                    continue
                frame = entry & paging.frame_mask
                if leaf:
                    if frame in wanted:
                        found.setdefault(frame, address)
                elif entry & _LARGE_PAGE and shift < 39 and (depth or len(paging.index_bits) == 2):
                    _take_large(found, wanted, frame & -(1 << shift), address, 1 << shift)
                elif frame not in seen and len(seen) < TABLE_BOUND:
                    seen.add(frame)
                    below.append((frame, address))
        level = below
    sign = (1 << 64) - (1 << 48) if memory.bits == 64 else 0
    return {page: address | sign if memory.bits == 64 else address for page, address in found.items()}


def _take_large(found: dict[int, int], wanted: set[int], frame: int, address: int, size: int) -> None:
    """Add those wanted pages that are part of one large page to `found`."""
    for page in wanted if len(wanted) < size // PAGE_SIZE else range(frame, frame + size, PAGE_SIZE):
        if page in wanted and frame <= page < frame + size:
            found.setdefault(page, address + page - frame)


# The HAL's own mappings, up to the end of the address space (ReactOS MM_HAL_VA_START, i386 and amd64/mm.h). Public
# remote kernel exploits put their first stage there.
_HAL_START = {4: 0xFFC00000, 8: 0xFFFFFFFFFFC00000}

# PTE_BASE, where x86 kernels map the page tables and, behind them, the page directories (ReactOS, i386/mm.h).
_PAGE_TABLES_X86 = 0xC0000000

SHARED_PAGE, PAGE_TABLES, HAL_HEAP = "KUSER_SHARED_DATA", "the page tables", "the HAL heap"


class Regions:
    """Names special regions of kernel space; on x64 the self-map of the page tables is located once."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._shared = SHARED_USER_DATA[memory.pointer_size]
        self._hal = _HAL_START[memory.pointer_size]
        self._tables = self._find_tables()

    def find(self, address: int) -> str | None:
        """Return the region that contains a kernel address (SHARED_PAGE, PAGE_TABLES, HAL_HEAP); else None."""
        if self._shared <= address < self._shared + PAGE_SIZE:
            return SHARED_PAGE
        if any(start <= address < end for start, end in self._tables):
            return PAGE_TABLES
        return HAL_HEAP if address >= self._hal else None

    def _find_tables(self) -> tuple[tuple[int, int], ...]:
        paging = self._memory.paging
        if self._memory.bits == 32:
            size = (1 << 20) * paging.entry_size
            return ((_PAGE_TABLES_X86, _PAGE_TABLES_X86 + size),)
        data = self._memory.read_physical(paging.top, PAGE_SIZE)
        if data is None:
            return ()
        # An entry of the top table that points to the table itself (self-map) maps all page tables at its index. Since
        # Windows 10 the index is random at each boot.
        shift = sum(paging.index_bits[1:]) + 12
        found = []
        for index in range(PAGE_SIZE // 2 // 8, PAGE_SIZE // 8):
            entry = int.from_bytes(data[8 * index : 8 * index + 8], "little")
            if entry & 1 and entry & paging.frame_mask == paging.top:
                start = index << shift | ((1 << 64) - (1 << 48))
                found.append((start, start + (1 << shift)))
        return tuple(found)


CHUNK = 1 << 20
"""How many bytes are read at once."""

_BEFORE = 4 * PAGE_SIZE
"""What vol's test reads below a page: of PAE, the table above the four page directories (DtbSelfRefPae)."""


def stack_page_tables(
    context: interfaces.context.ContextInterface, layer_name: str, progress_callback: constants.ProgressCallback
) -> interfaces.layers.DataLayerInterface | None:
    """Return the layer that vol's own stacker would; None where no page passes its tests.

    Windows' top page table has an entry for itself. Vol tests every page of the ranges where it lies entry by entry,
    in Python: of an image that covers the ranges 0.1 s of processor time on x64, 6 s on x86 (two cores of an AMD EPYC
    under load). Here vol's tests get only pages with such an entry: 0.01 s and 0.05 s.
    """
    layer = context.layers[layer_name]
    stack: Any = windows.WindowsIntelStacker.stack
    sets: Any = windows.WindowsIntelStacker.test_sets
    for name, tests, ranges in sets:
        pages = [page for start, length in ranges for page in _pages(layer, tests, start, start + length)]
        if pages:
            sections = [(max(0, page - _BEFORE), PAGE_SIZE + min(page, _BEFORE)) for page in pages]
            # The class is only asked for the sets of tests.
            found = stack.__func__(
                SimpleNamespace(test_sets=[(name, tests, sections)]), context, layer_name, progress_callback
            )
            if found is not None:
                return found  # type: ignore[no-any-return]
    return None


def _pages(layer: Any, tests: list[Any], start: int, end: int) -> Iterator[int]:
    """Yield the physical addresses of a range's pages that have an entry for themselves where a test wants it."""
    end = min(end, layer.maximum_address + 1)
    for at in range(start, end, CHUNK):
        data = layer.read(at, min(CHUNK, end - at), pad=True)
        found = {
            offset
            for test in tests
            for offset in _candidates(data, at, test)
            if _refers_to_itself(data, offset, at + offset, test)
        }
        yield from (at + offset for offset in sorted(found))


def _candidates(data: bytes, start: int, test: Any) -> Iterable[int]:
    """Return the offsets of pages that a test with one place for the entry may want: one byte of it is right.

    That byte of all pages is one slice, so that few pages are left to look at one by one.
    """
    offsets = range(0, len(data) - PAGE_SIZE + 1, PAGE_SIZE)
    if len(test.valid_range) > 1:
        return offsets
    bytes_there = data[test.valid_range[0] * test.ptr_size + 2 :: PAGE_SIZE]
    return [offset for offset, byte in zip(offsets, bytes_there, strict=False) if byte == (start + offset) >> 16 & 0xFF]


def _refers_to_itself(data: bytes, offset: int, page: int, test: Any) -> bool:
    """Tell whether a page may have such an entry: the bits from 16 on of its own address, at the place in an entry."""
    size, indices = test.ptr_size, test.valid_range
    wanted = (page >> 16).to_bytes(size, "little")[: 2 if size == 4 else 4]
    if len(indices) == 1:
        at = offset + indices[0] * size + 2
        return data[at : at + len(wanted)] == wanted
    at = data.find(wanted, offset + indices[0] * size, offset + (indices[-1] + 1) * size)
    while at >= 0:
        if (at - offset) % size == 2:
            return True
        at = data.find(wanted, at + 1, offset + (indices[-1] + 1) * size)
    return False
