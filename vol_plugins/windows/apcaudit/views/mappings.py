"""Which kernel address maps a physical page: one walk over the kernel's half of the page tables."""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct

from ..memory import PAGE, Memory

TABLE_BOUND = 1 << 18
"""How many page tables are read; a terabyte that is mapped in 4 KiB pages has twice as many."""

_PRESENT = 1
_LARGE_PAGE = 1 << 7  # the PS bit of a directory entry (Intel SDM volume 3, 4.3 to 4.5)


def kernel_addresses(memory: Memory, pages: Iterable[int], lowest: int) -> dict[int, int]:
    """Find the virtual pages of the kernel's half that map physical pages.

    A table that is reached twice is read once, which keeps page tables that point to themselves, as Windows' do,
    from being walked for ever. A page that nothing maps is not in the result.

    Args:
        memory: the image.
        pages: physical addresses of pages.
        lowest: where kernel space begins, a virtual address.

    Returns:
        Virtual address by physical address of each page found; the lowest where several map one.
    """
    wanted = {page & ~(PAGE - 1) for page in pages}
    found: dict[int, int] = {}
    if not wanted:
        return found
    paging = memory.paging
    unpack = Struct("<" + ("I" if paging.entry_size == 4 else "Q") * (PAGE // paging.entry_size)).unpack
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
            # The directory pointer table of PAE is 32 bytes that share their page with others.
            length = paging.entry_size << bits
            data = memory.read_physical(table, length)
            if data is None:
                continue
            entries = unpack(data.ljust(PAGE, b"\0"))[: 1 << bits]
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
    """Note the wanted pages within one large page."""
    for page in wanted if len(wanted) < size // PAGE else range(frame, frame + size, PAGE):
        if page in wanted and frame <= page < frame + size:
            found.setdefault(page, address + page - frame)
