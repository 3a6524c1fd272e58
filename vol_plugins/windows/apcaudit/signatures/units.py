"""What is scanned with YARA: a driver's image, or the memory around code in none, of the kernel or of a process."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ..formats.unwind_info import DEFAULT_SIZE
from ..kernel import Kernel
from ..model import Process
from ..modules.driver import Driver
from ..targets import Lies, Place
from ..windows import PAGE_SIZE
from .rules import Start, UnitFacts

if TYPE_CHECKING:
    from ..user.spaces import UserSpaces

BEFORE, BEHIND = 4 * PAGE_SIZE, 16 * PAGE_SIZE
"""Bytes before and behind code outside of any image that are scanned with it; shellcode is smaller."""

RUN = 256 << 10
"""How many bytes are read at once: for each larger block, once freed, the system has to map new pages."""

KEPT = 64 << 20
"""How many bytes of units are kept in case other threads start in them."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A range of virtual memory that is scanned as a whole: base, size in bytes, and its driver, None without one.

    `process` is the one in whose user space it lies, None in kernel space, `protection` that of a user APC's target.
    """

    base: int
    size: int
    driver: Driver | None = None
    process: Process | None = None
    protection: str = ""

    @property
    def key(self) -> tuple[int, int]:
        """What tells it from other units: addresses of user space mean something in one process only."""
        return 0 if self.process is None else self.process.address, self.base

    @property
    def name(self) -> str:
        """Its name in messages."""
        if self.driver is not None:
            return self.driver.label
        return f"the memory from {self.base:#x} on" + ("" if self.process is None else f" of {self.process}")


class UnitReader:
    """Finds units, reads them, and keeps the last ones."""

    def __init__(self, kernel: Kernel, spaces: Callable[[], UserSpaces] | None = None) -> None:
        self._memory = kernel.memory
        self._drivers = kernel.drivers
        self._spaces = spaces
        self._data: OrderedDict[tuple[int, int], bytearray] = OrderedDict()
        self._known: dict[int, UnitFacts] = {}
        self._loose: list[Unit] = []
        self.notes: list[str] = []

    def find(self, address: int) -> Unit | None:
        """Return the unit that a kernel address lies in, None where nothing is mapped there."""
        driver = self._drivers.find(address)
        if driver is not None:
            return Unit(driver.base, driver.size, driver)
        if address < self._drivers.kernel_start or self._memory.physical(address) is None:
            return None
        for unit in self._loose:
            if unit.base + BEFORE <= address < unit.base + unit.size - PAGE_SIZE:
                return unit
        page = address - address % PAGE_SIZE
        start, end = page, page + PAGE_SIZE
        while start > page - BEFORE and self._drivers.find_loaded(start - PAGE_SIZE) is None:
            start -= PAGE_SIZE
        while end < page + BEHIND and self._drivers.find_loaded(end) is None:
            end += PAGE_SIZE
        unit = Unit(start, end - start)
        self._loose.append(unit)
        return unit

    def find_target(self, place: Place, process: Process | None) -> Unit | None:
        """Return the unit around what a user APC would run, None unless that is private executable memory."""
        if self._spaces is None or process is None or place.lies is not Lies.PRIVATE or not place.executable:
            return None
        if place.start is None or place.end is None:
            return None
        page = place.address - place.address % PAGE_SIZE
        start, end = max(place.start, page - BEFORE), min(place.end + 1, page + BEHIND)
        return Unit(start, end - start, process=process, protection=place.protection or "")

    def describe_start(self, unit: Unit, address: int) -> Start:
        """Return offset and size of the function at an address in a unit."""
        rva = address - unit.base
        if unit.driver is None:
            return Start(rva, min(DEFAULT_SIZE, unit.size - rva))
        return Start(rva, self._drivers.image(unit.driver).function_size(rva))

    def describe(self, unit: Unit) -> UnitFacts:
        """Return the values of a unit's external variables; a driver's imports are read once."""
        if unit.process is not None:
            name, wow64 = unit.process.name or "", bool(unit.process.wow64)
            return UnitFacts(process=name, target_protection=unit.protection, wow64=wow64)
        if unit.driver is None:
            return UnitFacts(hidden=True)
        known = self._known.get(unit.base)
        if known is None:
            driver = unit.driver
            hidden = driver.hidden is True
            known = self._known[unit.base] = UnitFacts(driver.label, driver.path, hidden, self._imports(driver))
        return known

    def _imports(self, driver: Driver) -> tuple[str, ...]:
        addresses = self._drivers.image(driver).import_addresses
        names: set[str] = set()
        astray: list[int] = []
        patched: list[int] = []
        for address in addresses.values():
            found = self._drivers.function_names(address)
            names.update(found)
            holder = None if found else self._drivers.find_loaded(address)
            if not found and holder is None:
                astray.append(address)
            elif holder is not None and self._drivers.image(holder).exports.addresses:
                patched.append(address)
        for strange, where in ((astray, "no loaded module"), (patched, "no function that a module exports")):
            if strange:
                self.notes.append(
                    f"{driver.label}: {len(strange)} of {len(addresses)} imports lead to {where}, the first to"
                    f" {self._drivers.code(strange[0])}"
                )
        return tuple(sorted(names))

    def read_and_keep(self, unit: Unit) -> bytearray:
        """Read a unit, with zeros for pages that cannot be read, and keep it in case other threads start in it."""
        data = self._data.get(unit.key)
        if data is None:
            data = self._data[unit.key] = self.read(unit)
            while len(self._data) > 1 and sum(map(len, self._data.values())) > KEPT:
                self._data.popitem(last=False)
        return data

    def read(self, unit: Unit) -> bytearray:
        """Read a unit as `read_and_keep` does, without keeping it."""
        if unit.process is not None and self._spaces is not None:
            return read_padded(self._spaces().of(unit.process.address), unit.base, unit.size)
        return read_padded(self._memory, unit.base, unit.size)


class Translated(Protocol):
    """Memory that is translated: the kernel's, or a process's."""

    def physical(self, address: int) -> int | None:
        """Translate a virtual address; None where nothing is mapped."""

    def read_physical(self, address: int, length: int) -> bytes | None:
        """Read bytes of the physical layer; None unless all of them can be read."""


def read_padded(memory: Translated, base: int, size: int) -> bytearray:
    """Read virtual memory, with zeros for pages that cannot be read; physically adjacent pages are read at once."""
    data = bytearray(size)
    for at, start, length in _runs(memory, base, size):
        piece = memory.read_physical(start, length)
        if piece is not None:
            data[at : at + length] = piece
            continue
        for page in range(0, length, PAGE_SIZE):
            piece = memory.read_physical(start + page, min(PAGE_SIZE, length - page))
            if piece is not None:
                data[at + page : at + page + len(piece)] = piece
    return data


def _runs(memory: Translated, base: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Yield each run of physically adjacent pages of a range: offset in the range, physical address, length."""
    at = start = length = offset = 0
    while offset < size:
        address = base + offset
        page = memory.physical(address)
        # The base of a forged module list entry need not be the start of a page.
        step = min(PAGE_SIZE - address % PAGE_SIZE, size - offset)
        if page is not None and length and page == start + length and length < RUN:
            length += step
        else:
            if length:
                yield at, start, length
            at, start, length = (offset, 0, 0) if page is None else (offset, page, step)
        offset += step
    if length:
        yield at, start, length
