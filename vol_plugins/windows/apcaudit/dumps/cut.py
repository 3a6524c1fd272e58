"""Images that were cut short: what crash dumps and LiME images lack, and a layer for cut LiME images."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from volatility3.framework import interfaces
from volatility3.framework.layers import lime

from ..formats.crash_header import (
    DUMP_HEADER64_SIZE,
    DUMP_TYPE_FULL,
    DUMP_TYPE_TRIAGE,
    CrashHeader,
    parse_crash_header,
)
from ..formats.files import ReadFile, reader_of
from ..formats.triage_defects import promised_size
from ..formats.triage_header import parse_triage_header, triage_header_size
from ..windows import PAGE_SIZE
from .kernel_dump import find_bitmap

MAGIC = b"EMiL"  # LIME_MAGIC 0x4C694D45

RANGES_BOUND = 4096
"""How many ranges are read; machines have a few dozen."""

_VERSION = 1
_HEADER = struct.Struct("<4sI2Q8x")


@dataclass(frozen=True, slots=True)
class Range:
    """A range of physical memory: address and size from its header, offset in the file, bytes present in the file."""

    start: int
    size: int
    offset: int
    present: int


@dataclass(frozen=True, slots=True)
class LimeFile:
    """The ranges of a LiME image; `cut` says where it is truncated or damaged, None for a complete one."""

    ranges: tuple[Range, ...]
    cut: str | None


def parse_lime(read: ReadFile, size: int) -> LimeFile | None:
    """Parse the range headers of a LiME image of `size` bytes; None if the file is not a LiME image."""
    if read(0, len(MAGIC)) != MAGIC:
        return None
    ranges: list[Range] = []
    offset = address = 0
    while offset < size:
        number = len(ranges) + 1
        if size - offset < _HEADER.size:
            return LimeFile(tuple(ranges), f"is cut at offset {size:#x}, in the header of its range {number}")
        magic, version, start, last = _HEADER.unpack(read(offset, _HEADER.size))
        why = _wrong(magic, version, start, last, address)
        if why is None and number > RANGES_BOUND:
            why = f"more than {RANGES_BOUND} ranges"
        if why is not None:
            return LimeFile(tuple(ranges), f"is damaged at offset {offset:#x}: {why}")
        begin, length = offset + _HEADER.size, last - start + 1
        present = min(length, size - begin)
        if present:
            ranges.append(Range(start, length, begin, present))
        if present < length:
            return LimeFile(
                tuple(ranges),
                f"is cut at offset {size:#x}, in its range {number} (physical {start:#x} to {last:#x}), lacking"
                f" {length - present:,} of its {length:,} bytes",
            )
        offset, address = begin + length, last + 1
    return LimeFile(tuple(ranges), None)


def _wrong(magic: bytes, version: int, start: int, last: int, address: int) -> str | None:
    if magic != MAGIC:
        return "there is no header of a range"
    if version != _VERSION:
        return f"a range of version {version}, where 1 is known"
    if last < start or start < address:
        return f"a range from {start:#x} to {last:#x}, which does not follow the one before it"
    return None


class CutLimeLayer(lime.LimeLayer):
    """Physical memory of a truncated LiME image, as far as the file goes; vol's LimeLayer raises for such a file."""

    def _load_segments(self) -> None:
        base = str(self._base_layer)
        found = lime_file(self.context, base)
        if found is None or not found.ranges:
            raise lime.LimeFormatException(self.name, f"no LiME ranges in {base}")
        self._segments = [(each.start, each.offset, each.present, each.present) for each in found.ranges]


def lime_file(context: interfaces.context.ContextInterface, layer_name: str) -> LimeFile | None:
    """Parse the LiME image in a layer; None if it does not contain one."""
    layer = context.layers[layer_name]
    return parse_lime(reader_of(layer), layer.maximum_address + 1)


# PHYSICAL_MEMORY_DESCRIPTOR in DUMP_HEADER (Dump.h, Singularity), a buffer of 700 bytes. By size of a pointer: offset
# of the descriptor, which begins with NumberOfRuns; offset in it of the first run; format of a run (BasePage,
# PageCount).
_DESCRIPTOR = {4: (0x64, 0x8, "<2I"), 8: (0x88, 0x10, "<2Q")}
_DESCRIPTOR_SIZE = 700


def expected_size(header: CrashHeader, read: ReadFile) -> int | None:
    """Return the size in bytes that a crash dump should have by its headers; None where it is unknown."""
    if header.dump_type == DUMP_TYPE_FULL:
        pages = _pages_of_runs(header, read(0, header.header_size))
        return None if pages is None else header.header_size + pages * PAGE_SIZE
    bitmap = find_bitmap(header, read)
    return None if bitmap is None else bitmap.file_size


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
    if header.dump_type == DUMP_TYPE_TRIAGE:
        return _describe_cut_minidump(header, read, size)
    expected = expected_size(header, read)
    if expected is None or size >= expected:
        return None
    return f"is truncated: it has {size:,} of the {expected:,} bytes that its header promises"


def _describe_cut_minidump(header: CrashHeader, read: ReadFile, size: int) -> str | None:
    triage = parse_triage_header(read(header.header_size, triage_header_size(header.is_64bit)), header.is_64bit)
    if triage is None:
        return f"is cut right behind its crash header, at {size:#x}"
    promised = promised_size(triage, read, size)
    return None if promised is None else f"is cut: it has {size:,} of at least {promised:,} bytes"


def truncation_note(context: interfaces.context.ContextInterface, layer_name: str) -> str | None:
    """Say that the image file below a layer is truncated, and the consequences; None where it is not."""
    layer: Any = context.layers[layer_name]
    while layer.dependencies:
        layer = context.layers[layer.dependencies[0]]
    size, read = layer.maximum_address + 1, reader_of(layer)

    if read(0, len(MAGIC)) == MAGIC:
        found = parse_lime(read, size)
        reason = None if found is None else found.cut
        what = "the LiME image"
    else:
        header = parse_crash_header(read(0, DUMP_HEADER64_SIZE))
        # The layer of a minidump says what it lacks.
        if header is not None and header.dump_type == DUMP_TYPE_TRIAGE:
            return None
        reason, what = None if header is None else describe_truncation(header, read, size), "the crash dump"
    if reason is None:
        return None
    return f"{what} {reason}; what lay there is missing, and lists that lead there are reported as broken"
