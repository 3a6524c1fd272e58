"""The bitmap of a kernel or active memory dump: which physical pages the file holds, and where they lie.

DumpType 5 (active) and 6 (kernel, automatic and live ones since Windows 8) have `_SUMMARY_DUMP` of Volatility 3
(symbols/windows/crash_common.json). Before Windows 8 kernel memory dumps are of DumpType 2, with SUMMARY_DUMP32 or
SUMMARY_DUMP64 of Dump.h (Microsoft Research, Singularity). In all a bit stands for a page, the lowest page first, and
the pages that the file holds follow one another from HeaderSize on.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from .crash_header import DUMP_TYPE_BITMAP_FULL, DUMP_TYPE_BITMAP_KERNEL, DUMP_TYPE_SUMMARY, CrashHeader
from .files import ReadFile

TYPES = (DUMP_TYPE_SUMMARY, DUMP_TYPE_BITMAP_FULL, DUMP_TYPE_BITMAP_KERNEL)
"""The DumpTypes with a bitmap."""

_SIGNATURES = (b"SDMP", b"FDMP")
_VALID = b"DUMP"

# Signature, ValidDump, HeaderSize, Pages, BitmapSize; the bits follow.
_BITMAP = struct.Struct("<4s4s24x3Q")
# Signature, ValidDump, HeaderSize, BitmapSize, Pages; before the bits SizeOfBitMap and a reserved pointer.
_SUMMARY = {4: struct.Struct("<4s4s4x3I8x"), 8: struct.Struct("<4s4s4x3I16x")}

PAGES_BOUND = 1 << 32
"""How many pages a bitmap may describe: 16 TB of memory, whose bitmap has 512 MB."""

_WORD = 8
_ALL = (1 << 8 * _WORD) - 1
_PAGE = 0x1000


@dataclass(frozen=True, slots=True)
class PageBitmap:
    """Where the bitmap lies in the file, of how many pages, how many the file holds, and the offset of the first."""

    offset: int
    bits: int
    pages: int
    first_page: int

    @property
    def file_size(self) -> int:
        """How many bytes a complete file has at least."""
        return self.first_page + self.pages * _PAGE


def find_bitmap(header: CrashHeader, read: ReadFile) -> PageBitmap | None:
    """Find the bitmap behind the header of a kernel memory dump; None if there is none that can be one."""
    start = header.header_size
    layout = _SUMMARY[header.pointer_size] if header.dump_type == DUMP_TYPE_SUMMARY else _BITMAP
    data = read(start, layout.size)
    if header.dump_type not in TYPES or len(data) < layout.size:
        return None
    signature, valid, first, one, other = layout.unpack(data)
    bits, pages = (one, other) if layout is not _BITMAP else (other, one)
    bitmap = PageBitmap(start + layout.size, bits, pages, first)
    if signature not in _SIGNATURES or valid != _VALID or not 0 < pages <= bits <= PAGES_BOUND:
        return None
    return bitmap if bitmap.offset + (bits + 7) // 8 <= first else None


def page_runs(bitmap: PageBitmap, read: ReadFile) -> Iterator[tuple[int, int]]:
    """Yield the pages that the file holds as (number of the first, count), ascending."""
    size = (bitmap.bits + 7) // 8
    data = bytearray(read(bitmap.offset, size))
    if len(data) == size and bitmap.bits % 8:
        data[-1] &= (1 << bitmap.bits % 8) - 1
    data += bytes(-len(data) % _WORD)
    begin: int | None = None
    for index, (word,) in enumerate(struct.iter_unpack("<Q", data)):
        if word == (0 if begin is None else _ALL):
            continue
        page = index * 8 * _WORD
        # Bits in which a page differs from the one before it.
        changes = word ^ ((word << 1 | (begin is not None)) & _ALL)
        while changes:
            at = page + (changes & -changes).bit_length() - 1
            changes &= changes - 1
            if begin is None:
                begin = at
            else:
                yield begin, at - begin
                begin = None
    if begin is not None:
        # Only a bitmap of whole words ends in a page that the file holds.
        yield begin, len(data) * 8 - begin
