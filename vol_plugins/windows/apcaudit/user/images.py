"""The images and files that VADs map: names, exports, and what sections may hold code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from struct import unpack

from ..formats.layout import Member
from ..formats.pe import EXPORT, MACHINES, Exports, Header, read_exports, read_header, read_pdb_record
from ..image import Memory
from ..image.structures import read_unicode_string
from ..image.symbols import KernelSymbols
from ..modules.driver import PdbSymbols, find_symbols
from .vads import Vad, VadLayout

IMAGES_KEPT = 512
"""How many images are kept; a system-wide DLL is one, however many processes map it."""

EXPORTS_BOUND = 1 << 20
"""How many bytes of a table of exports are compared with the file's; that of a large DLL has some 100 KiB."""

_EXECUTABLE = 0x20000020  # IMAGE_SCN_CNT_CODE and IMAGE_SCN_MEM_EXECUTE (winnt.h)

# Offset of Base in IMAGE_EXPORT_DIRECTORY; NumberOfFunctions, NumberOfNames and AddressOfFunctions follow (winnt.h).
_ORDINAL_BASE = 16

# Offset and size of ImageBase in the optional header by Machine; it begins 24 bytes behind the signature (winnt.h).
_IMAGE_BASE = {MACHINES[32]: (24 + 28, 4), MACHINES[64]: (24 + 24, 8)}


Read = Callable[[int, int], "bytes | None"]
"""Reads bytes at a user address; None unless all of them can be read."""


@dataclass(frozen=True, slots=True)
class MappedSection:
    """What the VAD of a section leads to: addresses of the control area and of its prototype PTEs, and the file."""

    control_area: int | None = None
    first_pte: int = 0
    last_pte: int = 0
    path: str | None = None


class Sections:
    """Reads the sections of VADs in kernel memory; the name of a file once."""

    def __init__(self, memory: Memory, symbols: KernelSymbols, layout: VadLayout) -> None:
        self._memory, self._symbols, self._layout = memory, symbols, layout
        self._paths: dict[int, str | None] = {}

    def read(self, vad: Vad) -> MappedSection:
        """Read what a VAD leads to; a private one leads nowhere."""
        decoder = self._layout.section
        data = self._memory.read(vad.node, decoder.size) if decoder is not None and not vad.private else None
        if decoder is None or data is None:
            return MappedSection()
        subsection, area, first, last = decoder(data)
        if area is None and subsection:
            area = self._pointer(subsection, self._layout.subsection_area)
        return MappedSection(area, first or 0, last or 0, self._path(area) if area else None)

    def _path(self, area: int) -> str | None:
        if area not in self._paths:
            if len(self._paths) >= IMAGES_KEPT:
                self._paths.clear()
            file = self._pointer(area, self._layout.file)
            file = file & ~self._layout.reference if file else None
            name = read_unicode_string(self._memory, self._symbols, "_FILE_OBJECT", "FileName", file) if file else None
            self._paths[area] = name
        return self._paths[area]

    def _pointer(self, address: int, member: Member | None) -> int | None:
        data = None if member is None else self._memory.read(address + member.offset, member.size)
        return None if data is None else int.from_bytes(data, "little") or None


class UserImage:
    """An image as one process maps it; each part is read on first use."""

    def __init__(self, read: Read, base: int, size: int, path: str | None) -> None:
        self._read = read
        self._base = base
        self._size = size
        self.path = path

    def read(self, rva: int, length: int) -> bytes | None:
        """Read bytes at a relative virtual address; None unless all of them can be read."""
        inside = rva >= 0 and 0 < length <= self._size - rva
        return self._read(self._base + rva, length) if inside else None

    @cached_property
    def header(self) -> Header | None:
        """The headers, None where they cannot be read."""
        return read_header(self.read)

    @cached_property
    def exports(self) -> Exports:
        """The named exports; empty where they cannot be read."""
        return read_exports(self.read, self._size)

    @cached_property
    def symbols(self) -> PdbSymbols | None:
        """The symbols of its PDB, None where vol has none."""
        record = None if self.header is None else read_pdb_record(self.read, self.header)
        return None if record is None else find_symbols(record)

    @property
    def naming(self) -> tuple[tuple[int, int], ...]:
        """What its names are read from, as (relative virtual address, size): the header and the exports."""
        directory = None if self.header is None else self.header.directory(EXPORT)
        return ((0, 1),) if directory is None else ((0, 1), (directory[0], min(directory[1], EXPORTS_BOUND)))

    @property
    def is_cut(self) -> bool:
        """Whether its header, or some of the exports that the header says it has, could not be read."""
        if self.header is None:
            return True
        return self.exports.cut or self.exports.unread

    @property
    def is_disordered(self) -> bool:
        """Whether the loader would not find its exports by their names."""
        return self.exports.disordered

    @property
    def bits(self) -> int | None:
        """The bits of its machine, None where that is unknown."""
        machine = None if self.header is None else self.header.machine
        return next((bits for bits, each in MACHINES.items() if each == machine), None)

    @cached_property
    def moved(self) -> bool | None:
        """Whether its header names another base, so that relocations made its pages the process's own.

        Since Vista the kernel relocates the file's pages for all processes and writes the base into the header; before,
        and for a DLL whose place is taken, every process relocates its own.
        """
        header = self.header
        place = None if header is None else _IMAGE_BASE.get(header.machine)
        start = self.read(0x3C, 4)
        if place is None or start is None:
            return None
        data = self.read(int.from_bytes(start, "little") + place[0], place[1])
        return None if data is None else int.from_bytes(data, "little") != self._base

    def holds_code(self, rva: int) -> bool | None:
        """Tell whether a relative virtual address lies in a section with code, None if unknown."""
        header = self.header
        if header is None or not header.all_sections:
            return None
        section = header.section_at(rva)
        return None if section is None else bool(section.characteristics & _EXECUTABLE)

    def rva_of(self, ordinal: int) -> int | None:
        """Return the relative virtual address of an export by its ordinal, None where there is none."""
        directory = None if self.header is None else self.header.directory(EXPORT)
        data = None if directory is None else self.read(directory[0] + _ORDINAL_BASE, 16)
        if data is None:
            return None
        base, count, _, table = unpack("<4I", data)
        index = ordinal - base
        data = self.read(table + 4 * index, 4) if 0 <= index < count else None
        return None if data is None else int.from_bytes(data, "little") or None

    def names_at(self, rva: int) -> tuple[str, ...]:
        """Return the names of the exports at exactly a relative virtual address."""
        return self.exports.names_at(rva)

    def nearest(self, rva: int) -> tuple[str, int] | None:
        """Return the nearest export at or below a relative virtual address, and the distance in bytes."""
        return self.exports.nearest(rva)


def label_of(path: str | None) -> str | None:
    """Return a module's name as a debugger prints it: the file's name without the suffix of a program or DLL."""
    name = (path or "").rpartition("\\")[2]
    if not name:
        return None
    return name[:-4] if name.lower().endswith((".dll", ".exe")) else name
