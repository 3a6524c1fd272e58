"""The headers of a PE image as it stands in memory: sections and data directories, believed within bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct, unpack_from

ReadRva = Callable[[int, int], "bytes | None"]
"""Reads bytes at a relative virtual address of the image; None where they cannot be read."""

EXPORT, IMPORT, RESOURCE, EXCEPTION, DEBUG, IAT = 0, 1, 2, 3, 6, 12
"""Indices of data directories (winnt.h, IMAGE_DIRECTORY_ENTRY_*)."""

MACHINES = {32: 0x14C, 64: 0x8664}
"""IMAGE_FILE_MACHINE_I386 and _AMD64 (winnt.h) by the bits of a pointer."""

SECTIONS_BOUND = 96
"""How many sections are read: the loader takes no more (Microsoft, "PE Format", NumberOfSections)."""

IMAGE_BOUND = 256 << 20
"""The largest SizeOfImage that is believed, in bytes; the largest drivers of graphics cards have some 100 MiB."""

_DOS_MAGIC = b"MZ"
_PE_MAGIC = b"PE\0\0"
_PE_BOUND = 0x1000  # the header lies in the image's first page

# Offset of the data directories in the optional header by its magic (winnt.h, IMAGE_OPTIONAL_HEADER32 and 64).
_DIRECTORIES = {0x10B: 96, 0x20B: 112}
_SIZE_OF_IMAGE = 56  # in both optional headers
_SECTION = Struct("<8sIIIIIIHHI")  # IMAGE_SECTION_HEADER


@dataclass(frozen=True, slots=True)
class Section:
    """A section: name, relative virtual address and size in memory, characteristics."""

    name: str
    rva: int
    size: int
    characteristics: int


@dataclass(frozen=True, slots=True)
class Header:
    """What the headers say: machine, SizeOfImage in bytes, sections in their order, data directories (rva, size).

    `all_sections` is whether every section could be read and has a name that is text.
    """

    machine: int
    size_of_image: int
    sections: tuple[Section, ...]
    directories: tuple[tuple[int, int], ...]
    all_sections: bool = False

    def directory(self, index: int) -> tuple[int, int] | None:
        """Return a data directory's relative virtual address and size, None where the image has none."""
        if index >= len(self.directories):
            return None
        rva, size = self.directories[index]
        return (rva, size) if rva and size else None

    def section_at(self, rva: int) -> Section | None:
        """Return the section that holds a relative virtual address; of overlapping ones the smallest."""
        holding = [section for section in self.sections if section.rva <= rva < section.rva + section.size]
        return min(holding, key=lambda section: section.size, default=None)


def read_header(read: ReadRva) -> Header | None:
    """Read an image's headers, None where there are none."""
    dos = read(0, 0x40)
    if dos is None or not dos.startswith(_DOS_MAGIC):
        return None
    (pe,) = unpack_from("<I", dos, 0x3C)
    start = read(pe, 24 + 2) if pe < _PE_BOUND else None
    if start is None or not start.startswith(_PE_MAGIC):
        return None
    machine, section_count, optional_size = *unpack_from("<HH", start, 4), *unpack_from("<H", start, 20)
    (magic,) = unpack_from("<H", start, 24)
    if magic not in _DIRECTORIES:
        return None
    size_data = read(pe + 24 + _SIZE_OF_IMAGE, 4)
    size = 0 if size_data is None else int.from_bytes(size_data, "little")
    sections = _sections(read, pe + 24 + optional_size, min(section_count, SECTIONS_BOUND))
    directories = _directories(read, pe + 24 + _DIRECTORIES[magic])
    return Header(machine, size, sections, directories, len(sections) == section_count)


def _directories(read: ReadRva, start: int) -> tuple[tuple[int, int], ...]:
    count = read(start - 4, 4)
    if count is None:
        return ()
    data = None
    # Sixteen are defined; where the page ends before, what an image needs first is tried alone.
    for number in (16, 1):
        length = 8 * min(int.from_bytes(count, "little"), number)
        data = read(start, length) if length else None
        if data is not None:
            break
    return () if data is None else tuple(Struct("<II").iter_unpack(data))


def _sections(read: ReadRva, start: int, count: int) -> tuple[Section, ...]:
    data = read(start, count * _SECTION.size) if count else None
    if data is None:
        return ()
    sections = []
    for name, virtual_size, rva, raw_size, *_, characteristics in _SECTION.iter_unpack(data):
        text = name.rstrip(b"\0").decode("latin-1")
        if text.isascii() and text.isprintable():
            sections.append(Section(text, rva, virtual_size or raw_size, characteristics))
    return tuple(sections)
