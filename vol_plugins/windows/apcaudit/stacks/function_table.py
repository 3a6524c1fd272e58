"""The function table (.pdata) of an x64 image as it stands in memory: which entry holds an address."""

from __future__ import annotations

from enum import Enum

from ..drivers.pe_header import EXCEPTION, ReadRva, read_header
from .unwind_info import RUNTIME_FUNCTION, RuntimeFunction

_ENTRIES_BOUND = 1 << 20  # ntoskrnl of Windows 11 has some 40,000 functions

INDIRECTIONS_BOUND = 8
"""How often an entry may lead to another one; Windows makes one step (RUNTIME_FUNCTION_INDIRECT)."""


class NoEntry(Enum):
    """Why there is no entry: the function needs none (it leaves the stack alone), or the table cannot be read."""

    LEAF = "a leaf function"
    UNREADABLE = "the function table cannot be read"


class FunctionTable:
    """Searches one image's table; only the entries that the search touches are read."""

    def __init__(self, read: ReadRva, image_size: int) -> None:
        header = read_header(read)
        directory = None if header is None else header.directory(EXCEPTION)
        self._read = read
        self._start, size = directory or (0, 0)
        count = min(size // RUNTIME_FUNCTION.size, _ENTRIES_BOUND)
        self._count = count if self._start > 0 and self._start + count * RUNTIME_FUNCTION.size <= image_size else 0

    def find(self, rva: int) -> RuntimeFunction | NoEntry:
        """Return the entry that holds a relative virtual address."""
        low, high = 0, self._count
        if not high:
            return NoEntry.UNREADABLE
        while low < high:
            middle = (low + high) // 2
            entry = self._entry(self._start + middle * RUNTIME_FUNCTION.size)
            if entry is None:
                return NoEntry.UNREADABLE
            if rva < entry.begin:
                high = middle
            elif rva >= entry.end:
                low = middle + 1
            else:
                return self._direct(entry)
        return NoEntry.LEAF

    def _entry(self, rva: int) -> RuntimeFunction | None:
        data = self._read(rva, RUNTIME_FUNCTION.size)
        return None if data is None else RuntimeFunction(*RUNTIME_FUNCTION.unpack(data))

    def _direct(self, entry: RuntimeFunction) -> RuntimeFunction | NoEntry:
        """Follow an entry whose lowest bit says that its unwind data is another entry."""
        for _ in range(INDIRECTIONS_BOUND):
            if not entry.unwind_data & 1:
                return entry
            following = self._entry(entry.unwind_data - 1)
            if following is None:
                break
            entry = following
        return NoEntry.UNREADABLE
