"""One driver's image as it stands in memory: its headers, exports, imports and names, each read when asked for."""

from __future__ import annotations

from functools import cached_property

from ..memory import PAGE, Memory
from .driver import Driver
from .exports import Exports, read_exports
from .function_bounds import function_size
from .imports import SLOTS_BOUND, read_import_addresses
from .pdb_symbols import PdbSymbols, find_symbols
from .pe_header import Header, read_header
from .pe_names import read_pdb_record


class Image:
    """What can be known of a driver from its own bytes."""

    def __init__(self, driver: Driver, memory: Memory) -> None:
        self.driver = driver
        self._memory = memory

    def read(self, rva: int, length: int) -> bytes | None:
        """Read bytes at a relative virtual address."""
        return self._memory.read(self.driver.base + rva, length) if length > 0 else None

    @cached_property
    def header(self) -> Header | None:
        """The headers, None where they cannot be read."""
        return read_header(self.read)

    @cached_property
    def exports(self) -> Exports:
        """The export table."""
        return read_exports(self.read, self.driver.size)

    @cached_property
    def symbols(self) -> PdbSymbols | None:
        """The symbols of its PDB, where vol has them."""
        record = None if self.header is None else read_pdb_record(self.read, self.header)
        return None if record is None else find_symbols(record)

    @cached_property
    def import_addresses(self) -> dict[int, int]:
        """The imported addresses by the relative virtual address of their slots."""
        if self.header is None:
            return {}
        return read_import_addresses(self.read, self.header, self._memory.pointer_size)

    @property
    def overstated(self) -> int | None:
        """SizeOfImage by the image's own header where the list claims whole pages more, else None."""
        if self.header is None:
            return None
        own = -(-self.header.size_of_image // PAGE) * PAGE
        return own if 0 < own < self.driver.end - self.driver.base else None

    @cached_property
    def headless(self) -> bool:
        """Whether what lies at the base can be read and is no image."""
        return self.header is None and self.read(0, PAGE) is not None

    @property
    def cut(self) -> bool:
        """Whether more exports or imports are claimed than were read, of those that have been asked for."""
        exports, imports = vars(self).get("exports"), vars(self).get("import_addresses")
        return (exports is not None and exports.cut) or (imports is not None and len(imports) >= SLOTS_BOUND)

    def nearest(self, rva: int) -> tuple[str, int] | None:
        """Name a relative virtual address by the PDB, else by the exports: the name and the distance in bytes."""
        named = self.symbols.nearest(rva) if self.symbols is not None else None
        return named or self.exports.nearest(rva)

    def section(self, rva: int) -> str | None:
        """Name the section that a relative virtual address lies in."""
        section = None if self.header is None else self.header.section_at(rva)
        return (section.name or None) if section is not None else None

    def function_size(self, rva: int) -> int:
        """Tell how many bytes from a relative virtual address on belong to its function."""
        return function_size(self.read, self.header, self.exports, rva, self.driver.size)
