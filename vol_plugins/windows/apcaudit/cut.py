"""Images that end before they say: how many bytes a file should have by its own headers, and what that means."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from volatility3.framework import interfaces

from .lime.ranges import MAGIC, parse_lime
from .memory import PAGE
from .minidump.crash_header import (
    DUMP_HEADER64_SIZE,
    DUMP_TYPE_BITMAP_FULL,
    DUMP_TYPE_FULL,
    CrashHeader,
    parse_crash_header,
)

ReadFile = Callable[[int, int], bytes]
"""Reads (offset, length) of a file; gives fewer bytes at its end."""

# PHYSICAL_MEMORY_DESCRIPTOR in DUMP_HEADER (Dump.h, Singularity): its offset, NumberOfRuns, then (BasePage, PageCount)
# of each run, in a buffer of 700 bytes.
_DESCRIPTOR = {4: (0x64, 0x8, "<2I"), 8: (0x88, 0x10, "<2Q")}
_DESCRIPTOR_SIZE = 700

# _SUMMARY_DUMP behind the header (Volatility 3, symbols/windows/crash_common.json): HeaderSize, which is where the
# pages begin, and Pages.
_SUMMARY = struct.Struct("<4s4s24xQQ")
_SUMMARY_SIGNATURES = (b"SDMP", b"FDMP")
_SUMMARY_VALID = b"DUMP"


def expected_size(header: CrashHeader, read: ReadFile) -> int | None:
    """Return how many bytes a crash dump has by its headers, None where they do not say."""
    if header.dump_type == DUMP_TYPE_FULL:
        pages = _pages_of_runs(header, read(0, header.header_size))
        return None if pages is None else header.header_size + pages * PAGE
    if header.dump_type == DUMP_TYPE_BITMAP_FULL:
        summary = read(header.header_size, _SUMMARY.size)
        if len(summary) == _SUMMARY.size:
            signature, valid, begin, pages = _SUMMARY.unpack(summary)
            if signature in _SUMMARY_SIGNATURES and valid == _SUMMARY_VALID:
                return int(begin + pages * PAGE)
    return None


def _pages_of_runs(header: CrashHeader, data: bytes) -> int | None:
    descriptor, first, form = _DESCRIPTOR[header.pointer_size]
    (count,) = struct.unpack_from("<I", data, descriptor)
    run = struct.calcsize(form)
    if not 0 < count <= (_DESCRIPTOR_SIZE - first) // run:
        return None
    runs = struct.iter_unpack(form, data[descriptor + first : descriptor + first + count * run])
    return sum(int(pages) for _, pages in runs)


def lacking(header: CrashHeader, read: ReadFile, size: int) -> str | None:
    """Say how much a crash dump lacks, None where it is whole or does not say what it should have."""
    expected = expected_size(header, read)
    if expected is None or size >= expected:
        return None
    return f"is truncated: it has {size:,} of the {expected:,} bytes that its header promises"


def cut_note(context: interfaces.context.ContextInterface, layer_name: str) -> str | None:
    """Say of an image that was read as far as it goes that it ends too early, and what follows; None of others."""
    layer: Any = context.layers[layer_name]
    while layer.dependencies:
        layer = context.layers[layer.dependencies[0]]
    size = layer.maximum_address + 1

    def read(offset: int, length: int) -> bytes:
        length = min(length, size - offset)
        return bytes(layer.read(offset, length)) if length > 0 else b""

    if read(0, len(MAGIC)) == MAGIC:
        found = parse_lime(read, size)
        told = None if found is None else found.cut
        what = "the LiME image"
    else:
        header = parse_crash_header(read(0, DUMP_HEADER64_SIZE))
        told, what = None if header is None else lacking(header, read, size), "the crash dump"
    if told is None:
        return None
    return f"{what} {told}; what lay there is missing, and lists that lead there are reported as broken"
