"""What is scanned at once: a driver's whole image, or the memory around code that no image holds."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from ..drivers.driver import Driver
from ..drivers.function_bounds import DEFAULT_SIZE
from ..drivers.loaded import Drivers
from ..memory import PAGE, Memory
from .externals import Known, Start

BEFORE, BEHIND = 4 * PAGE, 16 * PAGE
"""How much memory around code in no image makes a unit; shellcode is smaller than that."""

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
        self._data: OrderedDict[int, bytes] = OrderedDict()
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
            hidden = self._drivers.complete and self._drivers.at(driver.base) != driver
            known = self._known[unit.base] = Known(driver.label, driver.path, hidden, self._imports(driver))
        return known

    def _imports(self, driver: Driver) -> tuple[str, ...]:
        addresses = self._drivers.image(driver).import_addresses
        names: set[str] = set()
        for address in addresses.values():
            names.update(self._drivers.function_names(address))
        astray = [address for address in addresses.values() if self._drivers.at(address) is None]
        if astray:
            self.notes.append(
                f"{driver.label}: {len(astray)} of {len(addresses)} imports lead to no loaded module, the first to"
                f" {astray[0]:#x}"
            )
        return tuple(sorted(names))

    def data(self, unit: Unit) -> bytes:
        """Read a unit, zeros for pages that cannot be read."""
        data = self._data.get(unit.base)
        if data is None:
            data = self._data[unit.base] = read_padded(self._memory, unit.base, unit.size)
            while len(self._data) > 1 and sum(map(len, self._data.values())) > KEPT:
                self._data.popitem(last=False)
        return data


def read_padded(memory: Memory, base: int, size: int) -> bytes:
    """Read virtual memory, zeros for pages that cannot be read; pages that lie side by side are read at once."""
    pieces: list[bytes] = []
    run, length = None, 0  # physical address and length of the run; None is one of unmapped pages
    for address in range(base, base + size, PAGE):
        page = memory.physical(address)
        step = min(PAGE, base + size - address)
        if length and (page is None if run is None else page == run + length):
            length += step
            continue
        if length:
            pieces.append(_run(memory, run, length))
        run, length = page, step
    pieces.append(_run(memory, run, length))
    return b"".join(pieces)


def _run(memory: Memory, start: int | None, length: int) -> bytes:
    if start is None:
        return bytes(length)
    data = memory.read_physical(start, length)
    if data is not None or length <= PAGE:
        return data if data is not None else bytes(length)
    return b"".join(_run(memory, start + at, min(PAGE, length - at)) for at in range(0, length, PAGE))
