"""What an image calls itself: its export table, its PDB record and its version resource."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from struct import Struct, unpack_from

from ..text import from_ansi, from_utf16, printable
from .pe_header import DEBUG, EXPORT, RESOURCE, Header, ReadRva

_NAME_BOUND = 256
_ENTRIES_BOUND = 64
"""How many debug entries, and entries of a resource directory, are looked at."""

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
    """Find an image's file name: as exported, else the PDB's stem, else the version resource's; None without any."""
    exported = _exported_name(read, header)
    if exported:
        return exported
    pdb = read_pdb_record(read, header)
    if pdb is not None:
        stem = pdb.name.replace("/", "\\").rpartition("\\")[2]
        return printable(stem[:-4] if stem.lower().endswith(".pdb") else stem)
    return _original_name(read, header)


def read_pdb_record(read: ReadRva, header: Header) -> PdbRecord | None:
    """Read the RSDS record, None where there is none or it cannot be read."""
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
    """Read OriginalFilename out of the first version resource."""
    directory = header.directory(RESOURCE)
    if directory is None:
        return None
    root = directory[0]
    at = _resource(read, root, 0, _VERSION)
    # Below the type lie the name's directory and the language's; the first of each will do.
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
    # The value begins at the next multiple of four; the key's own structure begins six bytes before it.
    start = found - 6
    value = start + (found + len(_ORIGINAL_NAME) - start + 3) // 4 * 4
    units = data[value : value + _NAME_BOUND]
    end = next((at for at in range(0, len(units) - 1, 2) if units[at : at + 2] == b"\0\0"), len(units) & ~1)
    return from_utf16(units[:end]) or None


def _resource(read: ReadRva, root: int, offset: int, wanted: int | None) -> int | None:
    """Find an entry of the resource directory at an offset: the one with this ID, or the first."""
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
