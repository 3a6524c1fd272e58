"""PE images: their headers, PDB record and file name, their exports and imports."""

from __future__ import annotations

import uuid
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from struct import Struct, unpack_from

from ..windows import PAGE_SIZE
from .text import choose_name, from_ansi, from_utf16, nearest, printable

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


NAMES_BOUND = 20_000
"""How many exported names are read; ntoskrnl has a few thousand."""

NAME_BOUND = 128
"""How many bytes of a name are read; longer (decorated C++) names are cut."""

_EXPORT_DIRECTORY = Struct("<IIHHIIIIIII")  # IMAGE_EXPORT_DIRECTORY, winnt.h


@dataclass(frozen=True, slots=True)
class Exports:
    """The named exports of an image, sorted by relative virtual address.

    `names` has one name for each address; `aliases` has all names of those addresses that have more than one.
    `forwarders` maps the name of a forwarded export to its target, `module.name`. `cut` is whether the table claims
    more entries than were read, `unread` whether some or all names could not be read, `disordered` whether they
    are not in the order that the loader's search relies on.
    """

    addresses: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    aliases: Mapping[int, tuple[str, ...]] = field(default_factory=dict, compare=False)
    forwarders: Mapping[str, str] = field(default_factory=dict, compare=False)
    cut: bool = False
    unread: bool = field(default=False, compare=False)
    disordered: bool = field(default=False, compare=False)

    def names_at(self, rva: int) -> tuple[str, ...]:
        """Return every name exported at exactly this relative virtual address."""
        found = self.nearest(rva)
        return self.aliases.get(rva, (found[0],)) if found is not None and not found[1] else ()

    def next(self, rva: int) -> int | None:
        """Return the relative virtual address of the first export above this address."""
        index = bisect_right(self.addresses, rva)
        return self.addresses[index] if index < len(self.addresses) else None

    def nearest(self, rva: int) -> tuple[str, int] | None:
        """Return the nearest name at or below a relative virtual address, and the distance in bytes."""
        return nearest(self.addresses, self.names, rva)


def read_exports(read: ReadRva, image_size: int) -> Exports:
    """Read the export table of an image; empty where there is none or it cannot be read.

    Args:
        read: reads bytes of the image.
        image_size: size of the image in bytes; addresses beyond it are ignored.
    """
    directory = _export_directory(read)
    if directory is None:
        return Exports()
    rva, size = directory
    data = read(rva, _EXPORT_DIRECTORY.size) if 0 < rva < image_size else None
    if data is None:
        return Exports(unread=True)
    *_, functions, names, function_table, name_table, ordinal_table = _EXPORT_DIRECTORY.unpack(data)
    cut = max(functions, names) > NAMES_BOUND
    functions, names = min(functions, NAMES_BOUND), min(names, NAMES_BOUND)
    function_data = _table(read, function_table, functions * 4, image_size)
    name_data = _table(read, name_table, names * 4, image_size)
    ordinal_data = _table(read, ordinal_table, names * 2, image_size)
    if function_data is None or name_data is None or ordinal_data is None:
        return Exports(cut=cut, unread=names > 0)
    found: dict[int, list[str]] = {}
    forwarders: dict[str, str] = {}
    unread, disordered, last = False, False, ""
    name_rvas, ordinals = unpack_from(f"<{names}I", name_data), unpack_from(f"<{names}H", ordinal_data)
    for name_rva, ordinal in zip(name_rvas, ordinals, strict=True):
        if ordinal >= functions:
            continue
        (address,) = unpack_from("<I", function_data, ordinal * 4)
        if not 0 < address < image_size:
            continue
        name = _name(read, name_rva) if name_rva < image_size else None
        if name is None:
            unread = True
            continue
        disordered, last = disordered or name < last, name
        if rva <= address < rva + size:
            # A forwarder: the address is inside the export directory and holds the text "module.name".
            target = _name(read, address)
            if target is not None and "." in target:
                forwarders[name] = target
            continue
        found.setdefault(address, []).append(name)
    addresses = tuple(sorted(found))
    aliases = {address: tuple(sorted(each)) for address, each in found.items() if len(each) > 1}
    chosen = tuple(choose_name(found[address]) for address in addresses)
    return Exports(addresses, chosen, aliases, forwarders, cut, unread, disordered)


def _export_directory(read: ReadRva) -> tuple[int, int] | None:
    header = read_header(read)
    return None if header is None else header.directory(EXPORT)


def _table(read: ReadRva, rva: int, length: int, image_size: int) -> bytes | None:
    return read(rva, length) if length and rva + length <= image_size else None


def _name(read: ReadRva, rva: int) -> str | None:
    """Read a name; where the next page cannot be read, the name must end within its own page."""
    data = read(rva, NAME_BOUND)
    if data is None:
        data = read(rva, PAGE_SIZE - rva % PAGE_SIZE)
        if data is None or b"\0" not in data:
            return None
    name = data.partition(b"\0")[0]
    return name.decode("ascii") if name.isascii() and name.decode("ascii").isprintable() and name else None


SLOTS_BOUND = 4096
"""How many imported functions are read; the largest drivers import about two thousand."""

_DESCRIPTORS_BOUND = 256
_DESCRIPTOR = Struct("<IIIII")  # IMAGE_IMPORT_DESCRIPTOR


def read_import_addresses(read: ReadRva, header: Header, pointer_size: int) -> dict[int, int]:
    """Return the imported addresses by the relative virtual address of their slots.

    The import address table is preferred to the import descriptors: most drivers keep those in INIT, which is discarded
    after initialization.
    """
    slots: dict[int, int] = {}
    directory = header.directory(IAT)
    if directory is not None:
        rva, size = directory
        _read_slots(read, rva, min(size // pointer_size, SLOTS_BOUND), pointer_size, slots, stop=False)
        return slots
    directory = header.directory(IMPORT)
    if directory is None:
        return slots
    for index in range(min(directory[1] // _DESCRIPTOR.size, _DESCRIPTORS_BOUND)):
        data = read(directory[0] + index * _DESCRIPTOR.size, _DESCRIPTOR.size)
        if data is None or not any(data):
            break
        first = _DESCRIPTOR.unpack(data)[4]
        if 0 < first < header.size_of_image:
            _read_slots(read, first, SLOTS_BOUND - len(slots), pointer_size, slots, stop=True)
    return slots


def _read_slots(read: ReadRva, rva: int, count: int, pointer_size: int, slots: dict[int, int], *, stop: bool) -> None:
    """Read pointers into `slots`, at once or, if that fails, one by one; with `stop`, one by one to the first null."""
    form = "<I" if pointer_size == 4 else "<Q"
    whole = None if stop else read(rva, count * pointer_size)
    for index in range(count):
        at = rva + index * pointer_size
        data = whole[index * pointer_size : (index + 1) * pointer_size] if whole is not None else read(at, pointer_size)
        if data is None and stop:
            return
        address = 0 if data is None else unpack_from(form, data)[0]
        if address:
            slots[at] = address
        elif stop:
            return
