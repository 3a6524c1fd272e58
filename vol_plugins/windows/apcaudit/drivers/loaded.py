"""Which driver holds an address: loaded modules, their names, exports and symbols."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from ..memory import Memory
from ..model import Backing, Code
from ..structures import both_ways, read_member, read_unicode_string
from ..symbols import KernelSymbols
from .exports import Exports, read_exports
from .unloaded import UnloadedDriver, read_unloaded

MODULE_BOUND = 4096
"""How many entries of PsLoadedModuleList are followed; Windows has some two hundred."""

IMAGE_BOUND = 256 << 20
"""The largest SizeOfImage that is believed, in bytes; the largest drivers of graphics cards have some 100 MiB."""

_KERNEL_NAMES = frozenset({"ntoskrnl", "ntkrnlmp", "ntkrnlpa", "ntkrpamp"})


@dataclass(frozen=True, slots=True)
class Driver:
    """A loaded module: base address, size in bytes, file name and path."""

    base: int
    size: int
    name: str
    path: str = ""

    @property
    def label(self) -> str:
        """The name as a debugger prints it before the exclamation mark."""
        stem = self.name.rpartition(".")[0] if self.name.lower().endswith((".sys", ".exe", ".dll")) else self.name
        return "nt" if stem.lower() in _KERNEL_NAMES else stem or f"{self.base:x}"


class Drivers:
    """The loaded modules as intervals [base, base + size), and the names of what lies in them."""

    def __init__(self, drivers: Sequence[Driver], memory: Memory, symbols: KernelSymbols, *, complete: bool) -> None:
        self.drivers = tuple(sorted(drivers, key=lambda driver: (driver.base, driver.size)))
        self.complete = complete
        self._memory = memory
        self._symbols = symbols
        self._bases = [driver.base for driver in self.drivers]
        self._exports: dict[int, Exports] = {}
        self._codes: dict[int, Code] = {}
        self.kernel_start = _kernel_start(memory, symbols)
        self.unloaded = read_unloaded(memory, symbols, self.kernel_start)

    def at(self, address: int) -> Driver | None:
        """Return the loaded module whose image holds a virtual address."""
        index = bisect_right(self._bases, address) - 1
        if index < 0:
            return None
        driver = self.drivers[index]
        return driver if address < driver.base + driver.size else None

    def formerly_at(self, address: int) -> UnloadedDriver | None:
        """Return the unloaded driver in whose former range a virtual address lies."""
        return next((driver for driver in self.unloaded if driver.start <= address < driver.end), None)

    def backing(self, address: int) -> Backing:
        """Tell what holds a code address."""
        if address < self.kernel_start or not self._memory.is_canonical(address):
            return Backing.USER
        if self.at(address) is not None:
            return Backing.MODULE
        if not self.complete:
            return Backing.UNKNOWN
        return Backing.NOTHING if self.formerly_at(address) is None else Backing.UNLOADED

    def code(self, address: int) -> Code:
        """Name a code address: `module!symbol+offset`, hexadecimal where it resolves to nothing."""
        code = self._codes.get(address)
        if code is None:
            code = self._codes[address] = self._resolve(address)
        return code

    def _resolve(self, address: int) -> Code:
        backing = self.backing(address)
        driver = self.at(address) if backing is Backing.MODULE else None
        if driver is None:
            former = self.formerly_at(address) if backing is Backing.UNLOADED else None
            return Code(address, backing, f"{address:#x}", former=None if former is None else former.name)
        if driver.base <= self._symbols.base < driver.base + driver.size:
            nearest = self._symbols.nearest(address)
        else:
            nearest = self._exports_of(driver).nearest(address - driver.base)
        if nearest is None:
            return Code(address, backing, f"{driver.label}+{address - driver.base:#x}", driver.label)
        symbol, distance = nearest
        text = f"{driver.label}!{symbol}" + (f"+{distance:#x}" if distance else "")
        return Code(address, backing, text, driver.label, symbol)

    def _exports_of(self, driver: Driver) -> Exports:
        exports = self._exports.get(driver.base)
        if exports is None:
            exports = read_exports(lambda rva, length: self._memory.read(driver.base + rva, length), driver.size)
            self._exports[driver.base] = exports
        return exports


def read_drivers(memory: Memory, symbols: KernelSymbols) -> Drivers:
    """Read PsLoadedModuleList.

    A list that is broken is followed from its other end too; `complete` is then False, and a routine in
    none of the modules read is of unknown backing instead of none.
    """
    head = symbols.address("PsLoadedModuleList")
    structure = "_KLDR_DATA_TABLE_ENTRY" if symbols.has_type("_KLDR_DATA_TABLE_ENTRY") else "_LDR_DATA_TABLE_ENTRY"
    if head is None:
        return Drivers((), memory, symbols, complete=False)
    entries, complete = both_ways(memory, head, MODULE_BOUND)
    drivers = []
    for entry in entries:
        driver = _read_driver(memory, symbols, structure, entry)
        if driver is None:
            complete = False
        else:
            drivers.append(driver)
    return Drivers(drivers, memory, symbols, complete=complete and bool(drivers))


def _read_driver(memory: Memory, symbols: KernelSymbols, structure: str, entry: int) -> Driver | None:
    # InLoadOrderLinks is the first member in every version: the list links entries by their start.
    links = symbols.member(structure, "InLoadOrderLinks.Flink")
    start = entry - links.offset if links is not None else entry
    base = read_member(memory, symbols, structure, "DllBase", start)
    size = read_member(memory, symbols, structure, "SizeOfImage", start)
    if not base or not size or size > IMAGE_BOUND:
        return None
    name = read_unicode_string(memory, symbols, structure, "BaseDllName", start)
    path = read_unicode_string(memory, symbols, structure, "FullDllName", start)
    return Driver(base, size, name or (path or "").rpartition("\\")[2], path or "")


def _kernel_start(memory: Memory, symbols: KernelSymbols) -> int:
    """Return where kernel space begins: what the kernel says (a 3 GB boot moves it), else the usual address."""
    usual = 0xFFFF800000000000 if memory.bits == 64 else 0x80000000  # Windows Internals, "Address space layouts"
    symbol = symbols.address("MmSystemRangeStart")
    said = None if symbol is None else memory.pointer(symbol)
    return said if said and usual <= said <= symbols.base else usual
