"""The headers of a PE image, its PDB record and its file name."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct, unpack_from

from .text import from_ansi, from_utf16, printable

ReadRva = Callable[[int, int], "bytes | None"]
"""Reads bytes at a relative virtual address of the image; None where they cannot be read."""

EXPORT, IMPORT, RESOURCE, EXCEPTION, DEBUG, IAT = 0, 1, 2, 3, 6, 12
"""Indices of data directories (winnt.h, IMAGE_DIRECTORY_ENTRY_*)."""

MACHINES = {32: 0x14C, 64: 0x8664}
"""IMAGE_FILE_MACHINE_I386 and _AMD64 (winnt.h) by the bits of a pointer."""

SECTIONS_BOUND = 96
"""How many sections are read; the loader accepts no more (Microsoft, "PE Format", NumberOfSections)."""

IMAGE_BOUND = 256 << 20
"""The largest plausible SizeOfImage, in bytes; the largest graphics drivers have some 100 MiB."""

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
    """The headers: Machine, SizeOfImage in bytes, sections in file order, data directories as (rva, size).

    `all_sections` is whether every section could be read and has a printable name.
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
        """Return the section that contains a relative virtual address, the smallest one where sections overlap."""
        holding = [section for section in self.sections if section.rva <= rva < section.rva + section.size]
        return min(holding, key=lambda section: section.size, default=None)


def read_header(read: ReadRva) -> Header | None:
    """Read an image's headers; None where no MZ and PE signature is found or they cannot be read."""
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
    # Sixteen are defined. If they reach into a page that cannot be read, try the first one (exports) alone.
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


_NAME_BOUND = 256
_ENTRIES_BOUND = 64
"""How many entries of the debug directory, and of a resource directory, are read."""

_DEBUG_ENTRY = Struct("<IIHHIIII")  # IMAGE_DEBUG_DIRECTORY
_CODEVIEW = 2  # IMAGE_DEBUG_TYPE_CODEVIEW
_RSDS = Struct("<4s16sI")  # CV_INFO_PDB70: signature, GUID, age, name (public since microsoft-pdb's langapi/cvinfo.h)
_VERSION = 16  # RT_VERSION (winuser.h)
_SUBDIRECTORY = 0x80000000
_RESOURCE_BOUND = 0x10000
_ORIGINAL_NAME = "OriginalFilename\0".encode("utf-16-le")


@dataclass(frozen=True, slots=True)
class PdbRecord:
    """The PDB that an image was linked with: file name, GUID as symbol stores write it, age."""

    name: str
    guid: str
    age: int


def name_of(read: ReadRva, header: Header) -> str | None:
    """Return an image's file name: from the export directory, else the PDB's name, else the version resource."""
    exported = _exported_name(read, header)
    if exported:
        return exported
    pdb = read_pdb_record(read, header)
    if pdb is not None:
        stem = pdb.name.replace("/", "\\").rpartition("\\")[2]
        return printable(stem[:-4] if stem.lower().endswith(".pdb") else stem)
    return _original_name(read, header)


def read_pdb_record(read: ReadRva, header: Header) -> PdbRecord | None:
    """Read the PDB record (CodeView RSDS), None where there is none or it cannot be read."""
    directory = header.directory(DEBUG)
    if directory is None:
        return None
    rva, size = directory
    for index in range(min(size // _DEBUG_ENTRY.size, _ENTRIES_BOUND)):
        data = read(rva + index * _DEBUG_ENTRY.size, _DEBUG_ENTRY.size)
        if data is None:
            return None
        *_, kind, _, address, _ = _DEBUG_ENTRY.unpack(data)
        record = read(address, _RSDS.size) if kind == _CODEVIEW and address else None
        if record is None or not record.startswith(b"RSDS"):
            continue
        _, guid, age = _RSDS.unpack(record)
        name = _text(read, address + _RSDS.size)
        if name:
            return PdbRecord(name, uuid.UUID(bytes_le=guid).hex.upper(), age)
    return None


def _exported_name(read: ReadRva, header: Header) -> str | None:
    directory = header.directory(EXPORT)
    data = read(directory[0] + 12, 4) if directory is not None else None
    rva = 0 if data is None else int.from_bytes(data, "little")
    return _text(read, rva) if 0 < rva < header.size_of_image else None


def _original_name(read: ReadRva, header: Header) -> str | None:
    """Read OriginalFilename from the first version resource."""
    directory = header.directory(RESOURCE)
    if directory is None:
        return None
    root = directory[0]
    at = _resource(read, root, 0, _VERSION)
    # Below the type are the directories of names and of languages; take the first entry of each.
    for _ in range(2):
        at = None if at is None or not at & _SUBDIRECTORY else _resource(read, root, at & ~_SUBDIRECTORY, None)
    entry = None if at is None or at & _SUBDIRECTORY else read(root + at, 8)
    if entry is None:
        return None
    rva, size = unpack_from("<II", entry)
    data = read(rva, min(size, _RESOURCE_BOUND)) if 0 < rva < header.size_of_image else None
    found = -1 if data is None else data.find(_ORIGINAL_NAME)
    if data is None or found < 0:
        return None
    # The value is aligned to four bytes, counted from the start of the String structure, six bytes before its key.
    start = found - 6
    value = start + (found + len(_ORIGINAL_NAME) - start + 3) // 4 * 4
    units = data[value : value + _NAME_BOUND]
    end = next((at for at in range(0, len(units) - 1, 2) if units[at : at + 2] == b"\0\0"), len(units) & ~1)
    return from_utf16(units[:end]) or None


def _resource(read: ReadRva, root: int, offset: int, wanted: int | None) -> int | None:
    """Return the OffsetToData of an entry of a resource directory: the one with the wanted ID, or the first if None."""
    head = read(root + offset, 16)
    if head is None:
        return None
    named, numbered = unpack_from("<HH", head, 12)
    for index in range(min(named + numbered, _ENTRIES_BOUND)):
        entry = read(root + offset + 16 + 8 * index, 8)
        if entry is None:
            return None
        identifier, data = unpack_from("<II", entry)
        if wanted is None or identifier == wanted:
            return int(data)
    return None


def _text(read: ReadRva, rva: int) -> str | None:
    data = read(rva, _NAME_BOUND)
    if data is None:
        data = read(rva, 0x1000 - rva % 0x1000)
    text = "" if data is None or b"\0" not in data else from_ansi(data)
    return text if text.isprintable() and text else None
