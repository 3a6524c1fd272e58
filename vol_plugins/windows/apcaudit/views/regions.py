"""The kinds of kernel memory that no module and no allocation of a KAPC lies in, by address."""

from __future__ import annotations

from ..memory import PAGE, Memory
from ..windows_version import SHARED_DATA

# Virtual memory that the HAL maps for itself, up to the end of the address space (ReactOS MM_HAL_VA_START, i386 and
# amd64/mm.h). The public kernel exploits' first stage lies there.
_HAL_START = {4: 0xFFC00000, 8: 0xFFFFFFFFFFC00000}

# Where x86 kernels map the page tables: PTE_BASE, to the end of the directories behind them (ReactOS, i386/mm.h).
_PAGE_TABLES_X86 = 0xC0000000

SHARED_PAGE, PAGE_TABLES, HAL_HEAP = "KUSER_SHARED_DATA", "the page tables", "the HAL heap"


class Regions:
    """Names the region of an address; the page tables' own place on x64 is found once."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._shared = SHARED_DATA[memory.pointer_size]
        self._hal = _HAL_START[memory.pointer_size]
        self._tables = self._find_tables()

    def at(self, address: int) -> str | None:
        """Name what a kernel address lies in, None where it is none of these."""
        if self._shared <= address < self._shared + PAGE:
            return SHARED_PAGE
        if any(start <= address < end for start, end in self._tables):
            return PAGE_TABLES
        return HAL_HEAP if address >= self._hal else None

    def _find_tables(self) -> tuple[tuple[int, int], ...]:
        paging = self._memory.paging
        if self._memory.bits == 32:
            size = (1 << 20) * paging.entry_size
            return ((_PAGE_TABLES_X86, _PAGE_TABLES_X86 + size),)
        data = self._memory.read_physical(paging.top, PAGE)
        if data is None:
            return ()
        # An entry of the top table that leads back to it shows all tables below its index; Windows 10 chooses the index
        # anew at every start.
        shift = sum(paging.index_bits[1:]) + 12
        found = []
        for index in range(PAGE // 2 // 8, PAGE // 8):
            entry = int.from_bytes(data[8 * index : 8 * index + 8], "little")
            if entry & 1 and entry & paging.frame_mask == paging.top:
                start = index << shift | ((1 << 64) - (1 << 48))
                found.append((start, start + (1 << shift)))
        return tuple(found)
