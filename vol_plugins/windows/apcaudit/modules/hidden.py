"""Finds drivers that PsLoadedModuleList lacks, by their driver objects and by the PE headers of their images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from ..formats.pe import IMAGE_BOUND, MACHINES, Header, name_of, read_header
from ..image import Memory
from ..image.structures import object_name, read_member, read_unicode_string
from ..image.symbols import KernelSymbols
from ..windows import PAGE_SIZE
from .driver import Driver, DriverSource

FOLDERS = ("Driver", "FileSystem")
"""The object directories that contain driver objects (WDK, "Object Directories")."""

BUCKETS = 37
"""The length of _OBJECT_DIRECTORY.HashBuckets in every version (symbol files, XP to 11)."""

OBJECTS_BOUND = 4096
"""How many entries of a directory are followed; Windows has some two hundred drivers."""

_DRIVER_TYPE = 4  # IO_TYPE_DRIVER (WDK, wdm.h)


def read_driver_objects(memory: Memory, symbols: KernelSymbols) -> tuple[Driver, ...]:
    """Read the named driver objects; empty where the object directories cannot be read."""
    symbol = symbols.address("ObpRootDirectoryObject")
    root = None if symbol is None else memory.pointer(symbol)
    if not root or not symbols.has_type("_OBJECT_DIRECTORY"):
        return ()
    folders = [body for body in _entries(memory, symbols, root) if object_name(memory, symbols, body) in FOLDERS]
    found = (_driver(memory, symbols, body) for folder in folders for body in _entries(memory, symbols, folder))
    return tuple(driver for driver in found if driver is not None)


def _entries(memory: Memory, symbols: KernelSymbols, directory: int) -> Iterator[int]:
    """Yield the objects of an _OBJECT_DIRECTORY; a chain ends where it cannot be read or repeats an entry."""
    seen: set[int] = set()
    for bucket in range(BUCKETS):
        entry = read_member(memory, symbols, "_OBJECT_DIRECTORY", f"HashBuckets[{bucket}]", directory)
        while entry and entry not in seen and len(seen) < OBJECTS_BOUND:
            seen.add(entry)
            body = read_member(memory, symbols, "_OBJECT_DIRECTORY_ENTRY", "Object", entry)
            if body:
                yield body
            entry = read_member(memory, symbols, "_OBJECT_DIRECTORY_ENTRY", "ChainLink", entry)


def _driver(memory: Memory, symbols: KernelSymbols, body: int) -> Driver | None:
    def member(name: str) -> int | None:
        return read_member(memory, symbols, "_DRIVER_OBJECT", name, body)

    start, size = member("DriverStart"), member("DriverSize")
    if member("Type") != _DRIVER_TYPE or not start or not size or size > IMAGE_BOUND:
        return None
    path = read_unicode_string(memory, symbols, "_DRIVER_OBJECT", "DriverName", body) or ""
    return Driver(start, size, path.rpartition("\\")[2], path, DriverSource.OBJECT)


WALK_BOUND = 16 << 20
"""How many bytes are searched below an address for a header; nearly every driver is smaller."""

GAP_BOUND = 2 << 20
"""How many consecutive unmapped bytes the search crosses. An image with a larger paged-out or discarded part below the
address is not found."""

WITHIN_BOUND = 1 << 17
"""How many pages of listed modules are searched for the header of another image; tens, where headers can be read."""

_EXECUTABLE = 0x20000000  # IMAGE_SCN_MEM_EXECUTE (winnt.h)


class HiddenImages:
    """Finds and caches the unlisted images that contain given addresses.

    Args:
        memory: the memory image.
        symbols: the kernel's symbols.
        listed: returns the module of PsLoadedModuleList that contains an address.
        complete: whether that list was read completely.
    """

    def __init__(
        self, memory: Memory, symbols: KernelSymbols, listed: Callable[[int], Driver | None], *, complete: bool
    ) -> None:
        self._memory = memory
        self._symbols = symbols
        self._listed = listed
        self._hidden = True if complete else None
        self._found: list[Driver] = []
        self._without: set[int] = set()
        self._within: dict[int, int | None] = {}
        self._pages_left = WITHIN_BOUND
        self._objects: tuple[Driver, ...] | None = None

    @property
    def objects(self) -> tuple[Driver, ...]:
        """The drivers that have a driver object but no entry in the list; read on first use."""
        if self._objects is None:
            every = read_driver_objects(self._memory, self._symbols)
            unlisted = (each for each in every if self._listed(each.base) is None)
            self._objects = tuple(replace(each, hidden=self._hidden) for each in unlisted)
        return self._objects

    def find(self, address: int) -> Driver | None:
        """Return the unlisted image that contains a kernel address outside of all listed modules; None if none does."""
        for driver in self._found:
            if driver.base <= address < driver.base + driver.size:
                return driver
        if address // PAGE_SIZE in self._without:
            return None
        found = self._by_header(address) or self._by_object(address)
        if found is None:
            self._without.add(address // PAGE_SIZE)
        else:
            self._found.append(found)
        return found

    def find_within(self, address: int, base: int) -> int | None:
        """Return where an image begins that has an address in its code, between a module's base and the address.

        It is for a listed module whose own header cannot be read, so that its entry is all that speaks for it.
        """
        page = address - address % PAGE_SIZE
        if page not in self._within:
            self._within[page] = self._search_within(page, address, base)
        return self._within[page]

    def _search_within(self, page: int, address: int, base: int) -> int | None:
        for start in range(page, max(base, page - WALK_BOUND), -PAGE_SIZE):
            if self._pages_left <= 0:
                return None
            self._pages_left -= 1
            if self._image(start, address) is not None:
                return start
        return None

    def _by_object(self, address: int) -> Driver | None:
        return next((each for each in self.objects if each.base <= address < each.base + each.size), None)

    def _by_header(self, address: int) -> Driver | None:
        """Search for a header below an address, page by page; end at a listed module, since images do not overlap."""
        page = address - address % PAGE_SIZE
        gap = 0
        for _ in range(WALK_BOUND // PAGE_SIZE):
            if page <= 0 or self._listed(page) is not None:
                return None
            if self._memory.physical(page) is None:
                gap += PAGE_SIZE
                if gap > GAP_BOUND:
                    return None
            else:
                gap = 0
                driver = self._image(page, address)
                if driver is not None:
                    return driver
            page -= PAGE_SIZE
        return None

    def _image(self, base: int, address: int) -> Driver | None:
        """Return the image with a header at `base`, None unless its machine is right and the address is in its code.

        Where its sections cannot be read, any address within its size will do.
        """

        def read(rva: int, length: int) -> bytes | None:
            return self._memory.read(base + rva, length)

        # Nearly every page is none: two bytes tell.
        header = read_header(read) if read(0, 2) == b"MZ" else None
        if header is None or not self._believable(header, address - base):
            return None
        name = name_of(read, header)
        driver = Driver(base, header.size_of_image, name or "", source=DriverSource.HEADER, hidden=self._hidden)
        known = self._by_object(address)
        if known is None:
            return driver
        return replace(driver, name=name or known.name, path=known.path)

    def _believable(self, header: Header, rva: int) -> bool:
        if header.machine != MACHINES[self._memory.bits] or not rva < header.size_of_image <= IMAGE_BOUND:
            return False
        if not header.sections:
            return True
        # The address has to lie in an executable section: a cached copy of the file has the same header, but its
        # sections lie at file offsets.
        section = header.section_at(rva)
        return section is not None and bool(section.characteristics & _EXECUTABLE)
