"""Detects truncated crash dumps and LiME images."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from volatility3.framework import interfaces

from ..formats.crash_header import (
    DUMP_HEADER64_SIZE,
    DUMP_TYPE_BITMAP_FULL,
    DUMP_TYPE_FULL,
    CrashHeader,
    parse_crash_header,
)
from ..windows import PAGE_SIZE
from .lime import MAGIC, parse_lime

ReadFile = Callable[[int, int], bytes]
"""Reads (offset, length) of a file; returns fewer bytes at its end."""

# PHYSICAL_MEMORY_DESCRIPTOR in DUMP_HEADER (Dump.h, Singularity), a buffer of 700 bytes. By size of a pointer: offset
# of the descriptor, which begins with NumberOfRuns; offset in it of the first run; format of a run (BasePage,
# PageCount).
_DESCRIPTOR = {4: (0x64, 0x8, "<2I"), 8: (0x88, 0x10, "<2Q")}
_DESCRIPTOR_SIZE = 700

# _SUMMARY_DUMP behind the header (Volatility 3, symbols/windows/crash_common.json): Signature, ValidDump, HeaderSize
# (the offset of the first page), Pages.
_SUMMARY = struct.Struct("<4s4s24xQQ")
_SUMMARY_SIGNATURES = (b"SDMP", b"FDMP")
_SUMMARY_VALID = b"DUMP"


def expected_size(header: CrashHeader, read: ReadFile) -> int | None:
    """Return the size in bytes that a crash dump should have by its headers; None where it is unknown."""
    if header.dump_type == DUMP_TYPE_FULL:
        pages = _pages_of_runs(header, read(0, header.header_size))
        return None if pages is None else header.header_size + pages * PAGE_SIZE
    if header.dump_type == DUMP_TYPE_BITMAP_FULL:
        summary = read(header.header_size, _SUMMARY.size)
        if len(summary) == _SUMMARY.size:
            signature, valid, begin, pages = _SUMMARY.unpack(summary)
            if signature in _SUMMARY_SIGNATURES and valid == _SUMMARY_VALID:
                return int(begin + pages * PAGE_SIZE)
    return None


def _pages_of_runs(header: CrashHeader, data: bytes) -> int | None:
    descriptor, first, form = _DESCRIPTOR[header.pointer_size]
    (count,) = struct.unpack_from("<I", data, descriptor)
    run = struct.calcsize(form)
    if not 0 < count <= (_DESCRIPTOR_SIZE - first) // run:
        return None
    runs = struct.iter_unpack(form, data[descriptor + first : descriptor + first + count * run])
    return sum(int(pages) for _, pages in runs)


def describe_truncation(header: CrashHeader, read: ReadFile, size: int) -> str | None:
    """Say how many bytes a crash dump of `size` bytes lacks; None where it is complete or its size is unknown."""
    expected = expected_size(header, read)
    if expected is None or size >= expected:
        return None
    return f"is truncated: it has {size:,} of the {expected:,} bytes that its header promises"


def truncation_note(context: interfaces.context.ContextInterface, layer_name: str) -> str | None:
    """Say that the image file below a layer is truncated, and the consequences; None where it is not."""
    layer: Any = context.layers[layer_name]
    while layer.dependencies:
        layer = context.layers[layer.dependencies[0]]
    size = layer.maximum_address + 1

    def read(offset: int, length: int) -> bytes:
        length = min(length, size - offset)
        return bytes(layer.read(offset, length)) if length > 0 else b""

    if read(0, len(MAGIC)) == MAGIC:
        found = parse_lime(read, size)
        reason = None if found is None else found.cut
        what = "the LiME image"
    else:
        header = parse_crash_header(read(0, DUMP_HEADER64_SIZE))
        reason, what = None if header is None else describe_truncation(header, read, size), "the crash dump"
    if reason is None:
        return None
    return f"{what} {reason}; what lay there is missing, and lists that lead there are reported as broken"
