"""What is scanned at once: a driver's whole image, or the memory around code that no image holds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from ..drivers.driver import Driver
from ..drivers.function_bounds import DEFAULT_SIZE
from ..drivers.loaded import Drivers
from ..memory import PAGE, Memory
from .externals import Known, Start

BEFORE, BEHIND = 4 * PAGE, 16 * PAGE
"""How much memory around code in no image makes a unit; shellcode is smaller than that."""

RUN = 256 << 10
"""How many bytes are read at once: what is larger, and given back at once, costs the system new pages every time."""

KEPT = 64 << 20
"""How many bytes of units are kept in case another thread starts in one of them."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A range of virtual memory: where it begins, its size in bytes, and its driver, None where no image holds it."""

    base: int
    size: int
    driver: Driver | None = None

    @property
    def name(self) -> str:
        """How messages call it."""
        return self.driver.label if self.driver is not None else f"the memory from {self.base:#x} on"


class Units:
    """Finds units, and reads each of them once."""

    def __init__(self, memory: Memory, drivers: Drivers) -> None:
        self._memory = memory
        self._drivers = drivers
        self._data: OrderedDict[int, bytearray] = OrderedDict()
        self._known: dict[int, Known] = {}
        self._loose: list[Unit] = []
        self.notes: list[str] = []

    def at(self, address: int) -> Unit | None:
        """Return the unit that a kernel address lies in, None where nothing is mapped there."""
        driver = self._drivers.holding(address)
        if driver is not None:
            return Unit(driver.base, driver.size, driver)
        if address < self._drivers.kernel_start or self._memory.physical(address) is None:
            return None
        for unit in self._loose:
            if unit.base + BEFORE <= address < unit.base + unit.size - PAGE:
                return unit
        page = address - address % PAGE
        start, end = page, page + PAGE
        while start > page - BEFORE and self._drivers.at(start - PAGE) is None:
            start -= PAGE
        while end < page + BEHIND and self._drivers.at(end) is None:
            end += PAGE
        unit = Unit(start, end - start)
        self._loose.append(unit)
        return unit

    def start(self, unit: Unit, address: int) -> Start:
        """Describe the function at an address of a unit."""
        rva = address - unit.base
        if unit.driver is None:
            return Start(rva, min(DEFAULT_SIZE, unit.size - rva))
        return Start(rva, self._drivers.image(unit.driver).function_size(rva))

    def known(self, unit: Unit) -> Known:
        """Tell what is known of a unit."""
        if unit.driver is None:
            return Known(hidden=True)
        known = self._known.get(unit.base)
        if known is None:
            driver = unit.driver
            hidden = driver.hidden is True
            known = self._known[unit.base] = Known(driver.label, driver.path, hidden, self._imports(driver))
        return known

    def _imports(self, driver: Driver) -> tuple[str, ...]:
        addresses = self._drivers.image(driver).import_addresses
        names: set[str] = set()
        astray: list[int] = []
        patched: list[int] = []
        for address in addresses.values():
            found = self._drivers.function_names(address)
            names.update(found)
            holder = None if found else self._drivers.at(address)
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

    def data(self, unit: Unit) -> bytearray:
        """Read a unit, zeros for pages that cannot be read, and keep it in case another thread starts in it."""
        data = self._data.get(unit.base)
        if data is None:
            data = self._data[unit.base] = self.read(unit)
            while len(self._data) > 1 and sum(map(len, self._data.values())) > KEPT:
                self._data.popitem(last=False)
        return data

    def read(self, unit: Unit) -> bytearray:
        """Read a unit as `data` does, and forget it."""
        return read_padded(self._memory, unit.base, unit.size)


def read_padded(memory: Memory, base: int, size: int) -> bytearray:
    """Read virtual memory, zeros for pages that cannot be read; pages that lie side by side are read at once."""
    data = bytearray(size)
    for at, start, length in _runs(memory, base, size):
        piece = memory.read_physical(start, length)
        if piece is not None:
            data[at : at + length] = piece
            continue
        for page in range(0, length, PAGE):
            piece = memory.read_physical(start + page, min(PAGE, length - page))
            if piece is not None:
                data[at + page : at + page + len(piece)] = piece
    return data


def _runs(memory: Memory, base: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Yield what is mapped of a range: offset in it, physical address and length of each run of adjacent pages."""
    at = start = length = offset = 0
    while offset < size:
        address = base + offset
        page = memory.physical(address)
        # A base that a list makes up need not be a page's.
        step = min(PAGE - address % PAGE, size - offset)
        if page is not None and length and page == start + length and length < RUN:
            length += step
        else:
            if length:
                yield at, start, length
            at, start, length = (offset, 0, 0) if page is None else (offset, page, step)
        offset += step
    if length:
        yield at, start, length
