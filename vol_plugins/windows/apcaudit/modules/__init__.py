"""Finds the module that contains an address, and names the code there."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .. import windows
from ..image import Memory
from ..image.symbols import KernelSymbols
from ..model import Backing, Code, ModuleConflict, NotCode
from .driver import Driver, Image, not_code
from .hidden import HiddenImages
from .module_list import UnloadedDriver, read_module_list, read_unloaded


@dataclass(frozen=True, slots=True)
class Overlap:
    """Two entries of the module list that claim the same addresses; the wide one is not believed there."""

    wide: Driver
    narrow: Driver

    def __str__(self) -> str:
        return (
            f"the entry of {self.wide.label} claims [{self.wide.base:#x}, {self.wide.end:#x}),"
            f" in which {self.narrow.label} lies at [{self.narrow.base:#x}, {self.narrow.end:#x})"
        )


class ModuleRanges:
    """Maps addresses to modules; where entries overlap, the kernel wins, then the smallest entry."""

    def __init__(self, drivers: Sequence[Driver], kernel: int) -> None:
        """Assign each range to one module.

        Args:
            drivers: the modules in any order.
            kernel: the kernel's base address.
        """
        ranked = sorted(drivers, key=lambda driver: (driver.base != kernel, driver.end - driver.base, driver.base))
        starts: list[int] = []
        self._ends: list[int] = []
        self._owners: list[Driver] = []
        overlaps: list[Overlap] = []
        for driver in ranked:
            free = _subtract(driver.base, driver.end, starts, self._ends)
            if sum(end - start for start, end in free) < driver.end - driver.base:
                overlaps.append(Overlap(driver, self._first_within(driver, starts)))
            for start, end in free:
                index = bisect_right(starts, start)
                starts.insert(index, start)
                self._ends.insert(index, end)
                self._owners.insert(index, driver)
        self._starts = starts
        self.overlaps = tuple(overlaps)

    def find(self, address: int) -> Driver | None:
        """Return the module to which an address is assigned."""
        index = bisect_right(self._starts, address) - 1
        return self._owners[index] if index >= 0 and address < self._ends[index] else None

    def _first_within(self, driver: Driver, starts: list[int]) -> Driver:
        index = max(bisect_right(starts, driver.base) - 1, 0)
        while self._ends[index] <= driver.base:
            index += 1
        return self._owners[index]


def _subtract(start: int, end: int, starts: list[int], ends: list[int]) -> list[tuple[int, int]]:
    """Return the parts of [start, end) that are in none of the sorted, disjoint ranges."""
    free: list[tuple[int, int]] = []
    index = max(bisect_right(starts, start) - 1, 0)
    while start < end and index < len(starts):
        if ends[index] > start:
            if starts[index] >= end:
                break
            if starts[index] > start:
                free.append((start, starts[index]))
            start = ends[index]
        index += 1
    if start < end:
        free.append((start, end))
    return free


HIDDEN_MARK = " (hidden)"
UNLISTED_MARK = " (unlisted)"
"""Appended to the name of code in an unlisted image; the second one where the list was not read completely."""

_CUT = "PsLoadedModuleList was not read whole: what backs an address may be unknown"

CODES_KEPT = 1 << 16
"""How many named addresses are cached; a hostile image may have more, which are then named again."""


class Drivers:
    """The loaded modules, and the names of the code in them and in hidden images.

    `drivers` has the entries of PsLoadedModuleList whose base is in kernel space, by base; `complete` is whether the
    list was read completely. `unloaded` and `hidden` are the other sources.
    """

    def __init__(self, drivers: Sequence[Driver], memory: Memory, symbols: KernelSymbols, *, complete: bool) -> None:
        self.kernel_start = _kernel_start(memory, symbols)
        self._below_kernel = tuple(driver for driver in drivers if driver.base < self.kernel_start)
        listed = (driver for driver in drivers if driver not in self._below_kernel)
        self.drivers = tuple(sorted(listed, key=lambda driver: (driver.base, driver.size)))
        self.complete = complete
        self._memory = memory
        self._symbols = symbols
        self._ranges = ModuleRanges(self.drivers, symbols.base)
        self._images: dict[int, Image] = {}
        self._sizes: dict[int, int] = {}
        self._codes: dict[int, Code] = {}
        self._routines: dict[int, Code] = {}
        self._contradicted: list[str] = []
        self._unreadable: list[str] = []
        self._named: dict[int, Driver] = {}
        self.unloaded = read_unloaded(memory, symbols, self.kernel_start)
        self.hidden = HiddenImages(memory, symbols, self.find_loaded, complete=complete)

    @property
    def notes(self) -> tuple[str, ...]:
        """The defects of the module list: not read completely, entries that contradict each other or their images."""
        notes = [] if self.complete else [_CUT]
        notes += [_describe_base(driver) for driver in self._below_kernel]
        notes += [self._describe_claim(driver) for driver in self.drivers if driver.claimed is not None]
        notes += [*map(str, self._ranges.overlaps), *self._contradicted]
        if self._unreadable:
            notes.append(
                f"the headers of {', '.join(self._unreadable)} cannot be read: nothing else shows an image there"
            )
        cut = [image.driver.label for image in self._images.values() if image.cut]
        if cut:
            notes.append(f"more exports or imports than are read are claimed by {', '.join(cut)}: names may be missing")
        return tuple(notes)

    def find_loaded(self, address: int) -> Driver | None:
        """Return the loaded module whose image contains a virtual address.

        Where entries overlap, the smallest is believed. Addresses that an entry claims beyond the SizeOfImage of the
        image's own header belong to no module.
        """
        driver = self._ranges.find(address)
        return driver if driver is not None and address - driver.base < self._size(driver) else None

    def conflict_at(self, address: int) -> ModuleConflict | None:
        """Return why the entry that claims an address is not believed; None where nothing contradicts it."""
        driver = self._ranges.find(address)
        if driver is None:
            lost = self._below_kernel_entry(address)
            return None if lost is None else ModuleConflict(_describe_base(lost), overlapping=True)
        if driver.claimed is not None and not self.is_kernel(driver):  # the kernel has been found without its entry
            return ModuleConflict(self._describe_claim(driver), overlapping=True)
        if address - driver.base >= self._size(driver):
            return ModuleConflict(self._describe_smaller_size(driver))
        if self.image(driver).has_no_header:
            return ModuleConflict(self._describe_missing_image(driver))
        if self.image(driver).header is None and not self._memory.partial:
            other = self.hidden.find_within(address, driver.base)
            if other is not None:
                claim = f"the entry of {driver.label} claims [{driver.base:#x}, {driver.end:#x})"
                return ModuleConflict(f"{claim}, in which another image lies at {other:#x}", overlapping=True)
        overlap = next((each for each in self._ranges.overlaps if self._is_doubtful(driver, address, each)), None)
        return None if overlap is None else ModuleConflict(str(overlap), overlapping=True)

    def _is_doubtful(self, driver: Driver, address: int, overlap: Overlap) -> bool:
        """Return whether an overlap makes it doubtful that an address is the driver's to which it is assigned."""
        if overlap.wide is driver:
            return True
        # The narrow entry is believed for its image. Where no header can be read, nothing speaks for it.
        claimed = overlap.wide.base <= address < overlap.wide.end
        return claimed and overlap.narrow is driver and self.image(driver).header is None

    def find(self, address: int) -> Driver | None:
        """Return the image that contains a virtual address, including hidden images."""
        driver = self.find_loaded(address)
        if driver is None and self.backing(address) in (Backing.NOTHING, Backing.UNKNOWN):
            driver = self.hidden.find(address)
        return driver

    def all_drivers(self) -> tuple[Driver, ...]:
        """Return the loaded modules, followed by the unlisted drivers that have a driver object."""
        others = {driver.base: driver for driver in self.hidden.objects}
        return (*self.drivers, *others.values())

    @property
    def unlisted(self) -> tuple[Driver, ...]:
        """The unlisted images in which code has been named so far, by base."""
        return tuple(self._named[base] for base in sorted(self._named))

    def image(self, driver: Driver) -> Image:
        """Return the Image that reads a driver's memory."""
        image = self._images.get(driver.base)
        if image is None:
            image = self._images[driver.base] = Image(driver, self._memory)
        return image

    def is_kernel(self, driver: Driver) -> bool:
        """Return whether a driver is the kernel itself."""
        return driver.base <= self._symbols.base < driver.base + driver.size

    def find_unloaded(self, address: int) -> UnloadedDriver | None:
        """Return the unloaded driver whose former range contains a virtual address."""
        return next((driver for driver in self.unloaded if driver.start <= address < driver.end), None)

    def backing(self, address: int) -> Backing:
        """Return what contains a code address."""
        if address < self.kernel_start or not self._memory.is_canonical(address):
            return Backing.USER
        if self.find_loaded(address) is not None:
            return Backing.MODULE
        if not self.complete or self._below_kernel_entry(address) is not None:
            return Backing.UNKNOWN
        return Backing.NOTHING if self.find_unloaded(address) is None else Backing.UNLOADED

    def code(self, address: int) -> Code:
        """Name a code address as `module!symbol+offset`, or hexadecimal where no module contains it."""
        code = self._codes.get(address)
        if code is None:
            if len(self._codes) >= CODES_KEPT:
                self._codes.clear()
            doubt = None if address < self.kernel_start else self.conflict_at(address)
            code = self._codes[address] = replace(self.named(address, self.nearest(address)), doubt=doubt)
        return code

    def routine(self, address: int) -> Code:
        """Name a routine's address like code(), and add why no routine can begin there (`not_code`)."""
        routine = self._routines.get(address)
        if routine is None:
            if len(self._routines) >= CODES_KEPT:
                self._routines.clear()
            routine = self._routines[address] = replace(self.code(address), not_code=self.not_code(address))
        return routine

    def not_code(self, address: int) -> NotCode | None:
        """Say why no function begins at an address in a loaded module; None where one may."""
        driver = self.find_loaded(address) if address >= self.kernel_start else None
        if driver is None:
            return None
        names = self._symbols.names_at(address) if self.is_kernel(driver) else self._names_at(driver, address)
        return not_code(self._memory, self.image(driver), address, names)

    def _names_at(self, driver: Driver, address: int) -> tuple[str, ...]:
        nearest = self.image(driver).nearest(address - driver.base)
        return (nearest[0],) if nearest is not None and not nearest[1] else ()

    def function_names(self, address: int) -> tuple[str, ...]:
        """Return all exports at exactly this address, else the kernel's symbols there, as `module!name`."""
        driver = self.find_loaded(address)
        if driver is None:
            return ()
        names = self.image(driver).exports.names_at(address - driver.base)
        if not names and self.is_kernel(driver):
            names = self._symbols.names_at(address)
        return tuple(f"{driver.label}!{name}" for name in names)

    def nearest(self, address: int) -> tuple[str, int] | None:
        """Return the nearest symbol, else export, at or below an address, and the distance in bytes.

        None where that does not name what is at the address: data does not name code.
        """
        driver = self.find(address)
        if driver is None:
            return None
        image, rva = self.image(driver), address - driver.base
        nearest = self._symbols.nearest(address) if self.is_kernel(driver) else image.nearest(rva)
        if nearest is None or nearest[0].startswith(windows.DATA_NAMES):
            return None
        distance = nearest[1]
        # Symbols name every function, exports only some.
        if not image.is_same_section(rva - distance, rva) or (
            distance >= windows.FUNCTION_BOUND and self.has_symbols(address)
        ):
            return None
        return nearest

    def has_symbols(self, address: int) -> bool:
        """Return whether the module that contains an address has symbols, which name every function, unlike exports."""
        driver = self.find(address)
        return driver is not None and (self.is_kernel(driver) or self.image(driver).symbols is not None)

    def named(self, address: int, nearest: tuple[str, int] | None) -> Code:
        """Name a code address by a symbol and the distance to it in bytes; if None, by module and section only."""
        backing = self.backing(address)
        driver = self.find(address)
        if driver is None:
            former = self.find_unloaded(address) if backing is Backing.UNLOADED else None
            return Code(address, backing, f"{address:#x}", former=None if former is None else former.name)
        mark = ""
        if backing is not Backing.MODULE:
            mark = HIDDEN_MARK if driver.hidden else UNLISTED_MARK
            self._named[driver.base] = driver
        rva = address - driver.base
        if nearest is None:
            section = self.image(driver).section(rva)
            where = f" ({section})" if section else ""
            return Code(address, backing, f"{driver.label}+{rva:#x}{where}{mark}", driver.label)
        symbol, distance = nearest
        text = f"{driver.label}!{symbol}" + (f"+{distance:#x}" if distance else "") + mark
        return Code(address, backing, text, driver.label, symbol)

    def _size(self, driver: Driver) -> int:
        size = self._sizes.get(driver.base)
        if size is None:
            own = self.image(driver).smaller_size_of_image
            if driver.claimed is not None:
                own = None  # a note says so already
            elif own is not None:
                self._contradicted.append(self._describe_smaller_size(driver))
            elif self.image(driver).has_no_header:
                self._contradicted.append(self._describe_missing_image(driver))
            elif self.image(driver).header is None and not self._memory.partial:
                self._unreadable.append(driver.label)
            size = self._sizes[driver.base] = driver.size if own is None else own
        return size

    def _below_kernel_entry(self, address: int) -> Driver | None:
        """Return the entry with a base below kernel space that has the size or name of the image at an address."""
        image = self.hidden.find(address) if self._below_kernel and address >= self.kernel_start else None
        if image is None:
            return None
        name = image.name.lower()
        return next((each for each in self._below_kernel if each.size == image.size or each.name.lower() == name), None)

    def _describe_claim(self, driver: Driver) -> str:
        claim = f"the entry of {driver.label} claims {driver.claimed or 0:#x} bytes from {driver.base:#x} on"
        header = self.image(driver).header
        if header is None:
            return f"{claim}, which no driver has, and its image's own header cannot be read"
        return f"{claim}, which no driver has; its image's own header says {header.size_of_image:#x}"

    def _describe_missing_image(self, driver: Driver) -> str:
        return (
            f"the entry of {driver.label} claims {driver.size:#x} bytes from {driver.base:#x} on, where no image begins"
        )

    def _describe_smaller_size(self, driver: Driver) -> str:
        return (
            f"the entry of {driver.label} claims {driver.size:#x} bytes from {driver.base:#x} on, of which the image's"
            f" own header says {self.image(driver).smaller_size_of_image or 0:#x}"
        )


def read_drivers(memory: Memory, symbols: KernelSymbols) -> Drivers:
    """Read PsLoadedModuleList.

    Where it cannot be read completely, `complete` is False, and the backing of a routine outside of all modules is
    UNKNOWN instead of NOTHING.
    """
    drivers, complete = read_module_list(memory, symbols)
    return Drivers(drivers, memory, symbols, complete=complete)


def _describe_base(driver: Driver) -> str:
    return f"the entry of {driver.label} says that its {driver.size:#x} bytes lie at {driver.base:#x}: no driver does"


def _kernel_start(memory: Memory, symbols: KernelSymbols) -> int:
    """Return the lowest address of kernel space; on x86 MmSystemRangeStart, which /3GB moves, if it is plausible.

    A value above the System process's address is not believed: kernel memory would be taken for user memory.
    """
    if memory.bits == 64:
        return 0xFFFF800000000000  # Windows Internals, "Address space layouts"
    usual, highest = 0x80000000, 0xC0000000  # /3GB, and what IncreaseUserVa can choose between them (WDK, BCDEdit)
    symbol, system = symbols.address("MmSystemRangeStart"), symbols.address("PsInitialSystemProcess")
    said = None if symbol is None else memory.pointer(symbol)
    process = None if system is None else memory.pointer(system)
    if not said or not usual <= said <= min(highest, symbols.base) or (process and process < said):
        return usual
    return said
