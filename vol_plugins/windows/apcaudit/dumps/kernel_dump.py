"""Kernel and active memory dumps: the bitmap of the pages that the file holds, and a layer for DumpType 2 and 6."""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from volatility3.framework import exceptions, interfaces
from volatility3.framework.layers import segmented

from ..formats.crash_header import (
    DUMP_HEADER64_SIZE,
    DUMP_TYPE_BITMAP_FULL,
    DUMP_TYPE_BITMAP_KERNEL,
    DUMP_TYPE_SUMMARY,
    CrashHeader,
    parse_crash_header,
)
from ..formats.files import ReadFile, reader_of
from ..windows import PAGE_SIZE

vollog = logging.getLogger(__name__)

_OF_KERNEL = (DUMP_TYPE_SUMMARY, DUMP_TYPE_BITMAP_KERNEL)
TYPES = (*_OF_KERNEL, DUMP_TYPE_BITMAP_FULL)
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
        return self.first_page + self.pages * PAGE_SIZE


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


class KernelDumpLayer(segmented.SegmentedLayer):
    """Physical memory of a kernel memory dump: the pages whose bits its bitmap has."""

    provides: ClassVar[dict[str, str]] = {"type": "physical"}

    def _load_segments(self) -> None:
        layer = self.context.layers[str(self._base_layer)]
        header, read = crash_header_of(layer)
        unreadable = header is None or header.is_encrypted or header.dump_type not in _OF_KERNEL
        bitmap = None if header is None or unreadable else find_bitmap(header, read)
        if bitmap is None:
            raise exceptions.LayerException(self.name, "no kernel memory dump")
        self._segments = list(_segments(bitmap, read))
        if not self._segments:
            raise exceptions.LayerException(self.name, "the kernel memory dump holds no page")
        pages = sum(size for _, _, size, _ in self._segments) // PAGE_SIZE
        if pages != bitmap.pages:
            vollog.warning(
                f"the kernel memory dump contradicts itself: its bitmap has {pages:,} pages, its header says"
                f" {bitmap.pages:,}; what is read may lie elsewhere"
            )


def _segments(bitmap: PageBitmap, read: ReadFile) -> Iterator[tuple[int, int, int, int]]:
    offset = bitmap.first_page
    for first, count in page_runs(bitmap, read):
        size = count * PAGE_SIZE
        yield first * PAGE_SIZE, offset, size, size
        offset += size


def crash_header_of(layer: Any) -> tuple[CrashHeader | None, ReadFile]:
    """Return the crash header in a file's layer, and a function that reads the file."""
    read = reader_of(layer)
    return parse_crash_header(read(0, DUMP_HEADER64_SIZE)), read


def stack_kernel_dump(context: interfaces.context.ContextInterface, layer_name: str) -> KernelDumpLayer | None:
    """Create the layer of a kernel memory dump; None for any other file, and for one without a usable bitmap."""
    header, _ = crash_header_of(context.layers[layer_name])
    if header is None or header.dump_type not in _OF_KERNEL:
        return None
    new_name = context.layers.free_layer_name(KernelDumpLayer.__name__)
    context.config[interfaces.configuration.path_join(new_name, "base_layer")] = layer_name
    try:
        return KernelDumpLayer(context, new_name, new_name)
    except exceptions.LayerException as error:
        vollog.debug(f"Not read as a kernel memory dump: {error}")
        return None
