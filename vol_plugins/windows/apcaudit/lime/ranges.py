"""The ranges of a LiME image, each behind a header of its own, and where the file ends before they do.

Source of the layout: `lime_mem_range_header` of LiME's lime.h (504ensicsLabs), the same as Volatility 3 reads
(framework/layers/lime.py). `e_addr` is the last byte's address. No table says how many ranges there are.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

MAGIC = b"EMiL"  # LIME_MAGIC 0x4C694D45

RANGES_BOUND = 4096
"""How many ranges are read; machines have some tens."""

_VERSION = 1
_HEADER = struct.Struct("<4sI2Q8x")

ReadFile = Callable[[int, int], bytes]
"""Reads (offset, length) of a file; gives fewer bytes at its end."""


@dataclass(frozen=True, slots=True)
class Range:
    """A range of physical memory: address and size as its header says, where its bytes begin in the file, how many."""

    start: int
    size: int
    offset: int
    present: int


@dataclass(frozen=True, slots=True)
class LimeFile:
    """What a LiME image holds; `cut` says where and in what it ends too early, None of a whole one."""

    ranges: tuple[Range, ...]
    cut: str | None


def parse_lime(read: ReadFile, size: int) -> LimeFile | None:
    """Read the headers of a LiME image of `size` bytes; None of a file that is none."""
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
