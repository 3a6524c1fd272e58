"""Where a function ends: by its unwind record on x64, by the next export or a bound on x86."""

from __future__ import annotations

from struct import Struct

from .exports import Exports
from .pe_header import EXCEPTION, MACHINES, Header, ReadRva

DEFAULT_SIZE = 0x400
"""How many bytes are taken for a function whose end nothing tells; few routines of threads are longer."""

_ENTRIES_BOUND = 1 << 18
_ENTRY = Struct("<III")  # RUNTIME_FUNCTION: begin, end, unwind data (Microsoft, "x64 exception handling")


def function_size(read: ReadRva, header: Header | None, exports: Exports, rva: int, limit: int) -> int:
    """Tell how many bytes from a relative virtual address on belong to the function that it lies in.

    Args:
        read: reads bytes of the image.
        header: its headers, None where there are none.
        exports: its exports.
        rva: the address, mostly where the function begins.
        limit: where the image ends.
    """
    if header is not None and header.machine == MACHINES[64]:
        end = _unwind_end(read, header, rva)
        if end is not None:
            return min(end, limit) - rva
    ends = [limit, rva + DEFAULT_SIZE]
    section = None if header is None else header.section_at(rva)
    if section is not None:
        ends.append(section.rva + section.size)
    following = exports.next(rva)
    if following is not None:
        ends.append(following)
    return max(min(ends) - rva, 0)


def _unwind_end(read: ReadRva, header: Header, rva: int) -> int | None:
    """Find the end of the unwind record that holds an address; the records are sorted by their begin."""
    directory = header.directory(EXCEPTION)
    if directory is None:
        return None
    low, high = 0, min(directory[1] // _ENTRY.size, _ENTRIES_BOUND)
    while low < high:
        middle = (low + high) // 2
        data = read(directory[0] + middle * _ENTRY.size, _ENTRY.size)
        if data is None:
            return None
        begin, end, _ = _ENTRY.unpack(data)
        if begin <= rva < end:
            return int(end)
        if rva < begin:
            high = middle
        else:
            low = middle + 1
    return None
