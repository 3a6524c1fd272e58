"""Which driver holds an address: the table of loaded modules, and hidden images where that has none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..memory import Memory
from ..model import Backing, Code, NotCode
from ..module_doubt import ModuleDoubt
from ..symbols import KernelSymbols
from .driver import Driver as Driver
from .entry_points import not_code
from .hidden import HiddenImages
from .image import Image
from .intervals import Intervals
from .module_list import read_module_list
from .unloaded import UnloadedDriver, read_unloaded

HIDDEN_MARK = " (hidden)"
UNLISTED_MARK = " (unlisted)"
"""Behind the name of code in an image that the module list lacks; the second where the list was not read whole."""

_CUT = "PsLoadedModuleList was not read whole: what backs an address may be unknown"

CODES_KEPT = 1 << 16
"""How many named addresses are remembered: what an adversary makes more of is named anew."""


class Drivers:
    """The loaded modules as ranges [base, base + size), and the names of what lies in them."""

    def __init__(self, drivers: Sequence[Driver], memory: Memory, symbols: KernelSymbols, *, complete: bool) -> None:
        self.kernel_start = _kernel_start(memory, symbols)
        self._adrift = tuple(driver for driver in drivers if driver.base < self.kernel_start)
        listed = (driver for driver in drivers if driver not in self._adrift)
        self.drivers = tuple(sorted(listed, key=lambda driver: (driver.base, driver.size)))
        self.complete = complete
        self._memory = memory
        self._symbols = symbols
        self._intervals = Intervals(self.drivers, symbols.base)
        self._images: dict[int, Image] = {}
        self._sizes: dict[int, int] = {}
        self._codes: dict[int, Code] = {}
        self._routines: dict[int, Code] = {}
        self._overstated: list[str] = []
        self._unread: list[str] = []
        self._named: dict[int, Driver] = {}
        self.unloaded = read_unloaded(memory, symbols, self.kernel_start)
        self.hidden = HiddenImages(memory, symbols, self.at, complete=complete)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was wrong with the module list: not read whole, entries that contradict one another or their images."""
        notes = [] if self.complete else [_CUT]
        notes += [_without_base(driver) for driver in self._adrift]
        notes += [self._claim(driver) for driver in self.drivers if driver.claimed is not None]
        notes += [*map(str, self._intervals.conflicts), *self._overstated]
        if self._unread:
            notes.append(f"the headers of {', '.join(self._unread)} cannot be read: nothing else shows an image there")
        cut = [image.driver.label for image in self._images.values() if image.cut]
        if cut:
            notes.append(f"more exports or imports than are read are claimed by {', '.join(cut)}: names may be missing")
        return tuple(notes)

    def at(self, address: int) -> Driver | None:
        """Return the loaded module whose image holds a virtual address.

        Where entries overlap, the smallest is believed; what an entry claims beyond the SizeOfImage of the image's
        own header is nobody's.
        """
        driver = self._intervals.at(address)
        return driver if driver is not None and address - driver.base < self._size(driver) else None

    def conflict_at(self, address: int) -> ModuleDoubt | None:
        """Say what contradicts the module list about an address that only a doubtful entry claims, else None."""
        driver = self._intervals.at(address)
        if driver is None:
            lost = self._adrift_at(address)
            return None if lost is None else ModuleDoubt(_without_base(lost), overlapping=True)
        if driver.claimed is not None and not self.is_kernel(driver):  # the kernel has been found without its entry
            return ModuleDoubt(self._claim(driver), overlapping=True)
        if address - driver.base >= self._size(driver):
            return ModuleDoubt(self._overstatement(driver))
        if self.image(driver).headless:
            return ModuleDoubt(self._no_image(driver))
        wide = next((each for each in self._intervals.conflicts if each.wide is driver), None)
        return None if wide is None else ModuleDoubt(str(wide), overlapping=True)

    def holding(self, address: int) -> Driver | None:
        """Return the image that holds a virtual address, hidden ones too."""
        driver = self.at(address)
        if driver is None and self.backing(address) in (Backing.NOTHING, Backing.UNKNOWN):
            driver = self.hidden.at(address)
        return driver

    def everywhere(self) -> tuple[Driver, ...]:
        """Return the loaded modules, and behind them what driver objects say of images that the list lacks."""
        others = {driver.base: driver for driver in self.hidden.objects}
        return (*self.drivers, *others.values())

    @property
    def unlisted(self) -> tuple[Driver, ...]:
        """The images that the list lacks and that code lies in which has been named, by base."""
        return tuple(self._named[base] for base in sorted(self._named))

    def image(self, driver: Driver) -> Image:
        """Return a driver's image, to be read as it is asked."""
        image = self._images.get(driver.base)
        if image is None:
            image = self._images[driver.base] = Image(driver, self._memory)
        return image

    def is_kernel(self, driver: Driver) -> bool:
        """Tell whether a driver is the kernel itself."""
        return driver.base <= self._symbols.base < driver.base + driver.size

    def formerly_at(self, address: int) -> UnloadedDriver | None:
        """Return the unloaded driver in whose former range a virtual address lies."""
        return next((driver for driver in self.unloaded if driver.start <= address < driver.end), None)

    def backing(self, address: int) -> Backing:
        """Tell what holds a code address."""
        if address < self.kernel_start or not self._memory.is_canonical(address):
            return Backing.USER
        if self.at(address) is not None:
            return Backing.MODULE
        if not self.complete or self._adrift_at(address) is not None:
            return Backing.UNKNOWN
        return Backing.NOTHING if self.formerly_at(address) is None else Backing.UNLOADED

    def code(self, address: int) -> Code:
        """Name a code address: `module!symbol+offset`, hexadecimal where it resolves to nothing."""
        code = self._codes.get(address)
        if code is None:
            if len(self._codes) >= CODES_KEPT:
                self._codes.clear()
            doubt = None if address < self.kernel_start else self.conflict_at(address)
            code = self._codes[address] = replace(self.named(address, self.nearest(address)), doubt=doubt)
        return code

    def routine(self, address: int) -> Code:
        """Name the address of a routine: as code(), and why none can begin there."""
        routine = self._routines.get(address)
        if routine is None:
            if len(self._routines) >= CODES_KEPT:
                self._routines.clear()
            routine = self._routines[address] = replace(self.code(address), not_code=self.not_code(address))
        return routine

    def not_code(self, address: int) -> NotCode | None:
        """Say why no function begins at an address in a loaded module, None where one does or nothing can be told."""
        driver = self.at(address) if address >= self.kernel_start else None
        if driver is None:
            return None
        names = self._symbols.names_at(address) if self.is_kernel(driver) else self._names_at(driver, address)
        return not_code(self._memory, self.image(driver), address, names)

    def _names_at(self, driver: Driver, address: int) -> tuple[str, ...]:
        nearest = self.image(driver).nearest(address - driver.base)
        return (nearest[0],) if nearest is not None and not nearest[1] else ()

    def function_names(self, address: int) -> tuple[str, ...]:
        """Name what a module exports at exactly this address, as `module!name`; the kernel's symbols serve too."""
        driver = self.at(address)
        if driver is None:
            return ()
        names = self.image(driver).exports.names_at(address - driver.base)
        if not names and self.is_kernel(driver):
            names = self._symbols.names_at(address)
        return tuple(f"{driver.label}!{name}" for name in names)

    def nearest(self, address: int) -> tuple[str, int] | None:
        """Return the name of the symbol, else of the export, at or below an address, and the distance in bytes."""
        driver = self.holding(address)
        if driver is None:
            return None
        if self.is_kernel(driver):
            return self._symbols.nearest(address)
        return self.image(driver).nearest(address - driver.base)

    def has_symbols(self, address: int) -> bool:
        """Tell whether what names an address are its module's symbols, which name every function, and no exports."""
        driver = self.holding(address)
        return driver is not None and (self.is_kernel(driver) or self.image(driver).symbols is not None)

    def named(self, address: int, nearest: tuple[str, int] | None) -> Code:
        """Name a code address by a symbol and the distance from it in bytes, by its module alone where that is None."""
        backing = self.backing(address)
        driver = self.holding(address)
        if driver is None:
            former = self.formerly_at(address) if backing is Backing.UNLOADED else None
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
            own = self.image(driver).overstated
            if driver.claimed is not None:
                own = None  # told already
            elif own is not None:
                self._overstated.append(self._overstatement(driver))
            elif self.image(driver).headless:
                self._overstated.append(self._no_image(driver))
            elif self.image(driver).header is None and not self._memory.partial:
                self._unread.append(driver.label)
            size = self._sizes[driver.base] = driver.size if own is None else own
        return size

    def _adrift_at(self, address: int) -> Driver | None:
        """Return an entry of no believable base that may be of the image an address lies in: size or name agree."""
        image = self.hidden.at(address) if self._adrift and address >= self.kernel_start else None
        if image is None:
            return None
        name = image.name.lower()
        return next((each for each in self._adrift if each.size == image.size or each.name.lower() == name), None)

    def _claim(self, driver: Driver) -> str:
        claim = f"the entry of {driver.label} claims {driver.claimed or 0:#x} bytes from {driver.base:#x} on"
        header = self.image(driver).header
        if header is None:
            return f"{claim}, which no driver has, and its image's own header cannot be read"
        return f"{claim}, which no driver has; its image's own header says {header.size_of_image:#x}"

    def _no_image(self, driver: Driver) -> str:
        return (
            f"the entry of {driver.label} claims {driver.size:#x} bytes from {driver.base:#x} on, where no image begins"
        )

    def _overstatement(self, driver: Driver) -> str:
        return (
            f"the entry of {driver.label} claims {driver.size:#x} bytes from {driver.base:#x} on, of which the image's"
            f" own header says {self.image(driver).overstated or 0:#x}"
        )


def read_drivers(memory: Memory, symbols: KernelSymbols) -> Drivers:
    """Read PsLoadedModuleList.

    Where it could not be read whole, `complete` is False, and a routine in none of the modules read is of unknown
    backing instead of none.
    """
    drivers, complete = read_module_list(memory, symbols)
    return Drivers(drivers, memory, symbols, complete=complete)


def _without_base(driver: Driver) -> str:
    return f"the entry of {driver.label} says that its {driver.size:#x} bytes lie at {driver.base:#x}: no driver does"


def _kernel_start(memory: Memory, symbols: KernelSymbols) -> int:
    """Return where kernel space begins: the usual address, or what a kernel of x86 says (a 3 GB boot moves it).

    It is not believed where the System process lies below it: all of the kernel's memory would be taken for a user's.
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
