"""A driver, and its image in memory: headers, exports, imports, PDB symbols, and where functions can begin."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any

from volatility3.framework import constants
from volatility3.framework.automagic import symbol_cache
from volatility3.framework.layers import resources

from ..formats import symbol_file
from ..formats.files import check_url
from ..formats.pe import (
    SLOTS_BOUND,
    Exports,
    Header,
    PdbRecord,
    read_exports,
    read_header,
    read_import_addresses,
    read_pdb_record,
)
from ..formats.text import nearest
from ..formats.unwind_info import FunctionTable, RuntimeFunction, function_size
from ..image import Memory
from ..image.symbols import preferred_name
from ..model import NotCode
from ..windows import PAGE_SIZE

_KERNEL_NAMES = frozenset({"ntoskrnl", "ntkrnlmp", "ntkrnlpa", "ntkrpamp"})


class DriverSource(Enum):
    """Where a driver was found."""

    MODULE = "PsLoadedModuleList"
    OBJECT = "a driver object"
    HEADER = "an image's header"


@dataclass(frozen=True, slots=True)
class Driver:
    """A driver: base address, size in bytes, file name and path.

    `hidden` is whether PsLoadedModuleList lacks it; None is unknown, since the list was not read completely. `claimed`
    is the SizeOfImage of a list entry if no driver can have that size (0 is one such size), else None. `size` is then
    the SizeOfImage of the image's own header, or the largest size that a driver can have.
    """

    base: int
    size: int
    name: str
    path: str = ""
    source: DriverSource = DriverSource.MODULE
    hidden: bool | None = False
    claimed: int | None = None

    @property
    def end(self) -> int:
        """The end of the range that the entry claims."""
        return self.base + max(self.size, self.claimed or 0)

    @property
    def label(self) -> str:
        """The module's name as a debugger prints it before the exclamation mark; `nt` for the kernel."""
        stem = self.name.rpartition(".")[0] if self.name.lower().endswith((".sys", ".exe", ".dll")) else self.name
        return "nt" if stem.lower() in _KERNEL_NAMES else stem or f"{self.base:x}"


vollog = logging.getLogger(__name__)

_LOCAL = ("file:", "jar:file:")
"""Prefixes of a symbol file's URL that need no network."""


@dataclass(frozen=True, slots=True)
class PdbSymbols:
    """The symbols of a driver's PDB, sorted by relative virtual address."""

    addresses: tuple[int, ...]
    names: tuple[str, ...]

    def nearest(self, rva: int) -> tuple[str, int] | None:
        """Return the nearest symbol at or below a relative virtual address, and the distance in bytes."""
        return nearest(self.addresses, self.names, rva)


def find_symbols(record: PdbRecord) -> PdbSymbols | None:
    """Load the symbols of a PDB; None where vol has no local symbol file of it or that cannot be read."""
    location = _location(record)
    if location is None or not location.startswith(_LOCAL):
        return None
    try:
        check_url(location)
        with resources.ResourceAccessor().open(location) as file:
            symbols: dict[str, Any] = symbol_file.load(file)["symbols"]
        by_address: dict[int, list[str]] = {}
        for name, symbol in symbols.items():
            by_address.setdefault(int(symbol["address"]), []).append(name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        vollog.info(f"symbol file {location} cannot be used: {error}")
        return None
    addresses = tuple(sorted(by_address))
    return PdbSymbols(addresses, tuple(preferred_name(by_address[address]) for address in addresses))


def _location(record: PdbRecord) -> str | None:
    """Look up the URL of a symbol file in vol's index."""
    import sqlite3

    path = os.path.join(constants.CACHE_PATH, constants.IDENTIFIERS_FILENAME)
    if not os.path.isfile(path):
        return None
    identifier = symbol_cache.WindowsIdentifier.generate(record.name, record.guid, record.age)
    try:
        cache: Any = symbol_cache.SqliteCache  # vol's types take it for abstract
        found: str | None = cache(path).find_location(identifier, "windows")
    except sqlite3.Error as error:
        vollog.info(f"vol's index of symbol files cannot be read: {error}")
        return None
    return found


class Image:
    """Reads a driver's image in memory; each part is read on first use."""

    def __init__(self, driver: Driver, memory: Memory) -> None:
        self.driver = driver
        self._memory = memory

    def read(self, rva: int, length: int) -> bytes | None:
        """Read bytes at a relative virtual address; None unless all of them can be read."""
        return self._memory.read(self.driver.base + rva, length) if length > 0 else None

    @cached_property
    def header(self) -> Header | None:
        """The headers, None where they cannot be read."""
        return read_header(self.read)

    @cached_property
    def exports(self) -> Exports:
        """The export table; empty where it cannot be read."""
        return read_exports(self.read, self.driver.size)

    @cached_property
    def symbols(self) -> PdbSymbols | None:
        """The symbols of its PDB; None where vol has none."""
        record = None if self.header is None else read_pdb_record(self.read, self.header)
        return None if record is None else find_symbols(record)

    @cached_property
    def import_addresses(self) -> dict[int, int]:
        """The imported addresses by the relative virtual address of their slots."""
        if self.header is None:
            return {}
        return read_import_addresses(self.read, self.header, self._memory.pointer_size)

    @property
    def smaller_size_of_image(self) -> int | None:
        """SizeOfImage of the image's own header in bytes (whole pages) if the list entry claims more, else None."""
        if self.header is None:
            return None
        own = -(-self.header.size_of_image // PAGE_SIZE) * PAGE_SIZE
        return own if 0 < own < self.driver.end - self.driver.base else None

    @cached_property
    def has_no_header(self) -> bool:
        """Whether the memory at the base can be read and does not begin with valid headers."""
        return self.header is None and self.read(0, PAGE_SIZE) is not None

    @property
    def cut(self) -> bool:
        """Whether the image claims more exports or imports than were read, as far as they have been requested."""
        exports, imports = vars(self).get("exports"), vars(self).get("import_addresses")
        return (exports is not None and exports.cut) or (imports is not None and len(imports) >= SLOTS_BOUND)

    def nearest(self, rva: int) -> tuple[str, int] | None:
        """Return the nearest PDB symbol, else export, at or below an address, and the distance in bytes."""
        named = self.symbols.nearest(rva) if self.symbols is not None else None
        return named or self.exports.nearest(rva)

    def section(self, rva: int) -> str | None:
        """Return the name of the section that contains a relative virtual address; None where it is unknown."""
        section = None if self.header is None else self.header.section_at(rva)
        return (section.name or None) if section is not None else None

    def is_same_section(self, one: int, other: int) -> bool:
        """Return whether two relative virtual addresses are in the same section, as far as the headers tell."""
        header = self.header
        return header is None or header.section_at(one) == header.section_at(other)

    def function_size(self, rva: int) -> int:
        """Return the number of bytes from a relative virtual address to the end of its function."""
        return function_size(self.read, self.header, self.exports, rva, self.driver.size)


# IMAGE_SCN_CNT_CODE and IMAGE_SCN_MEM_EXECUTE, IMAGE_SCN_MEM_DISCARDABLE (winnt.h).
_CODE, _DISCARDABLE = 0x20000020, 0x02000000


def not_code(memory: Memory, image: Image, address: int, names: tuple[str, ...]) -> NotCode | None:
    """Say why no function begins at an address; None where one may.

    Args:
        memory: the memory image.
        image: the module that contains the address.
        address: a virtual address in it.
        names: the symbols and exports at exactly that address.
    """
    driver, header = image.driver, image.header
    # read_header() omits sections with unprintable names. Then an address outside of all sections proves nothing.
    if header is None or not header.sections or not header.all_sections:
        return None
    rva = address - driver.base
    if rva < min(section.rva for section in header.sections):
        return NotCode(f"in the headers of {driver.label}", certain=True)
    section = header.section_at(rva)
    if section is None:
        return NotCode(f"in no section of {driver.label}", certain=True)
    if not section.characteristics & _CODE:
        return NotCode(f"in the section {section.name} of {driver.label}, which is not executable", certain=True)
    if section.characteristics & _DISCARDABLE and not memory.partial and memory.physical(address) is None:
        return NotCode(f"in the section {section.name} of {driver.label}, which was discarded", certain=True)
    if names or memory.bits == 32:
        return None
    return _within_function(image, driver, rva)


def _within_function(image: Image, driver: Driver, rva: int) -> NotCode | None:
    """Check by the function table whether an address is inside of a function; leaf functions have no entry."""
    entry = FunctionTable(image.read, driver.size).find(rva)
    if not isinstance(entry, RuntimeFunction) or entry.begin == rva:
        return None
    return NotCode(f"{rva - entry.begin:#x} bytes into the function at {driver.label}+{entry.begin:#x}", certain=False)
