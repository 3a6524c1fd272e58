"""Small but real PE images as they lie in memory: sections, exports, resolved imports, and the PDB's name.

Source of the format: Microsoft, "PE Format" (learn.microsoft.com/windows/win32/debug/pe-format).
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from apcaudit.synthetic.intermediate import Pdb

_PAGE = 0x1000
_CODE, _CONSTANTS, _DATA, _INIT = 0x68000020, 0x48000040, 0xC8000040, 0xE2000020
#: ... and in user space, where nothing is marked as not pageable: code, constants, data, relocations (discardable).
_USER = (0x60000020, 0x40000040, 0xC0000040, 0x42000040)

#: Link time of every image: fixed, 2026-01-01.
TIME_DATE_STAMP = 0x6955B900

#: A function body's first bytes: hot-patch nop and frame on x86, a home-space frame on x64; then a return.
_BODY = {False: bytes.fromhex("8bff558bec5dc3"), True: bytes.fromhex("4883ec284883c428c3")}


@dataclass(frozen=True, slots=True)
class PeImage:
    """What a PE image is made from. `imports` are resolved addresses by module and function name."""

    name: str
    size: int
    is_64bit: bool
    pdb: Pdb
    version: tuple[int, int, int]
    base: int
    exports: Mapping[str, int] = field(default_factory=dict)
    imports: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    code: Mapping[int, bytes] = field(default_factory=dict)
    #: UNWIND_INFO by the relative addresses [begin, end) of functions, on x64.
    unwind: Mapping[tuple[int, int], bytes] = field(default_factory=dict)
    #: Where .data begins (a kernel's variables); without it, the last page but one.
    data: int | None = None
    #: Whether all that precedes .data is one section of code, as where only the addresses of a kernel are known.
    all_code: bool = False
    #: Exports that lead to other modules' (`NTDLL.RtlAllocateHeap`), by name.
    forwards: Mapping[str, str] = field(default_factory=dict)
    #: Exports without a name: relative addresses by ordinal, which precede those of the named ones.
    ordinals: Mapping[int, int] = field(default_factory=dict)
    #: Whether it is a program's file, or a DLL, of user space.
    user: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """A section of an image: where it is, relative to the base, and its Characteristics."""

    name: bytes
    start: int
    size: int
    flags: int

    @property
    def executable(self) -> bool:
        """Tell whether IMAGE_SCN_MEM_EXECUTE is set."""
        return bool(self.flags & 0x20000000)

    @property
    def writable(self) -> bool:
        """Tell whether IMAGE_SCN_MEM_WRITE is set."""
        return bool(self.flags & 0x80000000)


def body(is_64bit: bool) -> bytes:
    """Give the first bytes of a function."""
    return _BODY[is_64bit]


def sections(image: PeImage) -> list[Section]:
    """Give the image's sections in their order."""
    return [Section(*each) for each in _sections(image)[0]]


def lay_out(image: PeImage) -> dict[int, bytes]:
    """Give the image's pieces: relative address to bytes. INIT has been discarded, as after a driver's start."""
    sections, constants, text = _sections(image)
    read_only, directories = _read_only_data(image, constants)
    pieces = {0: _headers(image, sections, directories, text), constants: read_only}
    body = _BODY[image.is_64bit]
    pieces |= {rva: body for rva in sorted(set(image.exports.values())) if _is_code(rva, sections)}
    pieces |= dict(image.code)
    return pieces


def _sections(image: PeImage) -> tuple[list[tuple[bytes, int, int, int]], int, int]:
    """Give the sections, and where constants and code begin."""
    init = image.size - _PAGE
    length = -(-len(_read_only_data(image, 0)[0]) // _PAGE) * _PAGE
    code, read_only, variables, last = _USER if image.user else (_CODE, _CONSTANTS, _DATA, _INIT)
    if image.data is None:
        # A driver or a file of user space: code, constants, variables.
        text, data = _PAGE, init - _PAGE
        constants = data - length
        sections = [(b".text", text, constants - text, code), (b".rdata", constants, length, read_only)]
        sections += [(b".data", data, init - data, variables)]
    elif image.all_code:
        constants, text, data = _PAGE, _PAGE, image.data
        sections = [(b".text", text, data - text, _CODE), (b".data", data, init - data, _DATA)]
    else:
        # A kernel: constants, with the PDB's name, close to the header; variables amid code; pageable code behind them.
        # The pool's code has a section of its own, by which readers that have no symbols know the kernel.
        constants, text, data, after = _PAGE, _PAGE + length, image.data, image.data + 0x10000
        sections = [(b".rdata", constants, length, _CONSTANTS), (b".text", text, data - text, _CODE)]
        sections += [(b".data", data, 0x10000, _DATA), (b"POOLCODE", after, _PAGE, _CODE)]
        sections.append((b"PAGE", after + _PAGE, init - after - _PAGE, _CODE))
    sections.append((b".reloc" if image.user else b"INIT", init, image.size - init, last))
    return sections, constants, text


def import_slots(image: PeImage) -> dict[str, int]:
    """Give the relative addresses of a driver's import slots by the name of the function."""
    length = -(-len(_read_only_data(image, 0)[0]) // _PAGE) * _PAGE
    at = _read_only_data(image, image.size - 2 * _PAGE - length)[1].get(12, (0, 0))[0]
    slots = {}
    for functions in image.imports.values():
        for name in functions:
            slots[name] = at
            at += 8 if image.is_64bit else 4
        at += 8 if image.is_64bit else 4
    return slots


def _is_code(rva: int, sections: list[tuple[bytes, int, int, int]]) -> bool:
    return any(start <= rva < start + size and flags in (_CODE, _USER[0]) for _, start, size, flags in sections)


def _headers(
    image: PeImage, sections: list[tuple[bytes, int, int, int]], directories: dict[int, tuple[int, int]], entry: int
) -> bytes:
    dos = (
        b"MZ\x90\0" + bytes(0x38) + struct.pack("<I", 0x80) + b"\x0e\x1f\xba\x0e\0\xb4\x09\xcd\x21\xb8\x01\x4c\xcd\x21"
    )
    optional_size = 0xF0 if image.is_64bit else 0xE0
    machine, characteristics = (0x8664, 0x22) if image.is_64bit else (0x14C, 0x10E)
    file_header = struct.pack("<HHIIIHH", machine, len(sections), TIME_DATE_STAMP, 0, 0, optional_size, characteristics)
    common = struct.pack(
        "<HBBIIIII", 0x20B if image.is_64bit else 0x10B, 9, 0, image.size - 3 * _PAGE, 2 * _PAGE, 0, entry, entry
    )
    if image.is_64bit:
        common += struct.pack("<Q", image.base)
    else:
        common += struct.pack("<II", image.size - 2 * _PAGE, image.base)
    major, minor, _ = image.version
    common += struct.pack("<IIHHHHHH", _PAGE, _PAGE, major, minor, major, minor, major, minor)
    common += struct.pack("<IIIIHH", 0, image.size, _PAGE, 0, 1, 0)
    common += struct.pack("<QQQQ" if image.is_64bit else "<IIII", 0x40000, 0x1000, 0x100000, 0x1000)
    common += struct.pack("<II", 0, 16)
    for index in range(16):
        common += struct.pack("<II", *directories.get(index, (0, 0)))
    table = b"".join(
        struct.pack("<8sIIIIIIHHI", name, size, rva, size, rva, 0, 0, 0, 0, flags)
        for name, rva, size, flags in sections
    )
    return dos.ljust(0x80, b"\0") + b"PE\0\0" + file_header + common + table


def _read_only_data(image: PeImage, start: int) -> tuple[bytes, dict[int, tuple[int, int]]]:
    """Make debug directory, PDB record, exports and imports; also give their data directories."""
    data = bytearray()
    directories: dict[int, tuple[int, int]] = {}
    record = b"RSDS" + uuid.UUID(image.pdb.guid).bytes_le + struct.pack("<I", image.pdb.age)
    record += image.pdb.name.encode() + b"\0"
    # Debug directory entry: type 2 is CodeView.
    data += struct.pack("<IIHHIIII", 0, TIME_DATE_STAMP, 0, 0, 2, len(record), start + 0x1C, start + 0x1C) + record
    directories[6] = (start, 0x1C)
    data += bytes(-len(data) % 16)
    if image.exports or image.forwards or image.ordinals:
        exports = _exports(image, start + len(data))
        directories[0] = (start + len(data), len(exports))
        data += exports + bytes(-len(exports) % 16)
    if image.imports:
        at = start + len(data)
        imports, table_size, addresses_size = _imports(image, at)
        directories[12] = (at, addresses_size)
        directories[1] = (at + addresses_size, table_size)
        data += imports
    if image.unwind:
        data += bytes(-len(data) % 4)
        directories[3] = (start + len(data), 12 * len(image.unwind))
        data += _function_table(image, start + len(data))
    return bytes(data), directories


def _function_table(image: PeImage, start: int) -> bytes:
    """Make .pdata and, behind it, the unwind data that it refers to."""
    table, infos = bytearray(), bytearray()
    for (begin, end), info in sorted(image.unwind.items()):
        table += struct.pack("<III", begin, end, start + 12 * len(image.unwind) + len(infos))
        infos += info + bytes(-len(info) % 4)
    return bytes(table + infos)


def _exports(image: PeImage, start: int) -> bytes:
    names = sorted({*image.exports, *image.forwards})
    first = max(image.ordinals, default=0)
    count = first + len(names)
    functions, strings_at = start + 0x28, start + 0x28 + 4 * count + 6 * len(names)
    strings, offsets = bytearray(image.name.encode() + b"\0"), []
    addresses = [image.ordinals.get(ordinal, 0) for ordinal in range(1, first + 1)]
    for name in names:
        offsets.append(strings_at + len(strings))
        strings += name.encode() + b"\0"
        if name not in image.forwards:
            addresses.append(image.exports[name])
            continue
        # A forwarded export's address leads to the text of its target, within the export directory.
        addresses.append(strings_at + len(strings))
        strings += image.forwards[name].encode() + b"\0"
    table = struct.pack(
        "<IIHHIIIIIII",
        0,
        TIME_DATE_STAMP,
        0,
        0,
        strings_at,
        1,
        count,
        len(names),
        functions,
        functions + 4 * count,
        functions + 4 * (count + len(names)),
    )
    table += struct.pack(f"<{count}I", *addresses)
    table += struct.pack(f"<{len(names)}I", *offsets)
    table += struct.pack(f"<{len(names)}H", *range(first, count))
    return table + bytes(strings)


def _imports(image: PeImage, start: int) -> tuple[bytes, int, int]:
    """Make import address table, descriptors, lookup table and names; also give the first two's sizes."""
    pointer = "<Q" if image.is_64bit else "<I"
    width = struct.calcsize(pointer)
    slots = sum(len(functions) + 1 for functions in image.imports.values())
    descriptors_at = start + slots * width
    descriptors_size = 20 * (len(image.imports) + 1)
    lookup_at = descriptors_at + descriptors_size + (-descriptors_size % 8)
    strings_at = lookup_at + slots * width
    addresses, descriptors, lookup, strings = bytearray(), bytearray(), bytearray(), bytearray()
    for module, functions in image.imports.items():
        lookup_rva, addresses_rva = lookup_at + len(lookup), start + len(addresses)
        for name, address in functions.items():
            lookup += struct.pack(pointer, strings_at + len(strings))
            strings += b"\0\0" + name.encode() + b"\0"
            addresses += struct.pack(pointer, address)
        lookup += bytes(width)
        addresses += bytes(width)
        descriptors += struct.pack("<IIIII", lookup_rva, 0, 0, strings_at + len(strings), addresses_rva)
        strings += module.encode() + b"\0"
    descriptors += bytes(20)
    data = addresses + descriptors + bytes(-descriptors_size % 8) + lookup + strings
    return bytes(data), descriptors_size, len(addresses)
