"""Images that PsLoadedModuleList lacks: by walking back to an MZ header, and by driver objects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..memory import PAGE, Memory
from ..symbols import KernelSymbols
from .driver import Driver, Source
from .objects import read_driver_objects
from .pe_header import IMAGE_BOUND, MACHINES, Header, read_header
from .pe_names import name_of

WALK_BOUND = 16 << 20
"""How many bytes are walked back from an address; more than nearly every driver has."""

GAP_BOUND = 2 << 20
"""How many bytes in a row may be unmapped on the way: pageable and discarded sections are, whole regions are not."""

_EXECUTABLE = 0x20000000  # IMAGE_SCN_MEM_EXECUTE (winnt.h)


class HiddenImages:
    """Finds the image that an address in no listed module lies in, each once.

    Args:
        memory: the image's memory.
        symbols: the kernel's.
        listed: gives the module of the list that holds an address.
        complete: whether that list was read whole.
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
        self._objects: tuple[Driver, ...] | None = None

    @property
    def objects(self) -> tuple[Driver, ...]:
        """What driver objects say of images that the list lacks, read when it is first asked for."""
        if self._objects is None:
            every = read_driver_objects(self._memory, self._symbols)
            unlisted = (each for each in every if self._listed(each.base) is None)
            self._objects = tuple(replace(each, hidden=self._hidden) for each in unlisted)
        return self._objects

    def at(self, address: int) -> Driver | None:
        """Return the image that holds a kernel address in no listed module, None where there is none."""
        for driver in self._found:
            if driver.base <= address < driver.base + driver.size:
                return driver
        if address // PAGE in self._without:
            return None
        found = self._by_header(address) or self._by_object(address)
        if found is None:
            self._without.add(address // PAGE)
        else:
            self._found.append(found)
        return found

    def _by_object(self, address: int) -> Driver | None:
        return next((each for each in self.objects if each.base <= address < each.base + each.size), None)

    def _by_header(self, address: int) -> Driver | None:
        """Walk back page by page; a listed module in the way ends the walk, since images do not overlap."""
        page = address - address % PAGE
        gap = 0
        for _ in range(WALK_BOUND // PAGE):
            if page <= 0 or self._listed(page) is not None:
                return None
            if self._memory.physical(page) is None:
                gap += PAGE
                if gap > GAP_BOUND:
                    return None
            else:
                gap = 0
                if self._memory.read(page, 2) == b"MZ":
                    driver = self._image(page, address)
                    if driver is not None:
                        return driver
            page -= PAGE
        return None

    def _image(self, base: int, address: int) -> Driver | None:
        """Believe a header whose machine fits and whose image holds the address in code."""

        def read(rva: int, length: int) -> bytes | None:
            return self._memory.read(base + rva, length)

        header = read_header(read)
        if header is None or not self._believable(header, address - base):
            return None
        name = name_of(read, header)
        driver = Driver(base, header.size_of_image, name or "", source=Source.HEADER, hidden=self._hidden)
        known = self._by_object(address)
        if known is None:
            return driver
        return replace(driver, name=name or known.name, path=known.path)

    def _believable(self, header: Header, rva: int) -> bool:
        if header.machine != MACHINES[self._memory.bits] or not rva < header.size_of_image <= IMAGE_BOUND:
            return False
        if not header.sections:
            return True
        # A file's own bytes in the cache have such a header too, but what lies there is no code of it.
        section = header.section_at(rva)
        return section is not None and bool(section.characteristics & _EXECUTABLE)
