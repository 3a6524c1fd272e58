"""LiME images: parses the ranges, and provides a layer for truncated images."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from volatility3.framework import interfaces
from volatility3.framework.layers import lime

from ..formats.files import ReadFile, reader_of

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
