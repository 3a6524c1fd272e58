"""The code of the image's modules, as a walk over a stack asks for it."""

from __future__ import annotations

from ..drivers.loaded import Driver, Drivers
from ..memory import PAGE, Memory
from ..symbols import KernelSymbols
from .calls import CallBefore, find_call
from .function_table import FunctionTable
from .unwind_info import RuntimeFunction
from .walk_x64 import UnwindTable

_EXECUTABLE = 0x20000000  # IMAGE_SCN_MEM_EXECUTE (winnt.h)

# Parts of the names of nt's routines that call whatever address they are given: control flow guard and retpolines.
_DISPATCHERS = ("guard_dispatch", "guard_check", "retpoline")
# Since Windows 10 1809 the stubs through which a driver built for retpolines calls lie right behind its image
# (Microsoft, "Mitigating Spectre variant 2 with Retpoline on Windows"; a genuine dump of 19041 shows calls to
# 0x12a0 behind it).
_STUB_PAGES = 16
# jmp to a register or through memory, as import thunks and those routines have it (Intel SDM volume 2, JMP).
_JUMPS = (b"\xff\x25", b"\xff\xe0", b"\x48\xff\x25", b"\x48\xff\xe0", b"\x41\xff")


class ModuleCode:
    """Answers for one image; what was found out about an address is remembered."""

    def __init__(self, memory: Memory, drivers: Drivers, symbols: KernelSymbols) -> None:
        self._memory = memory
        self._drivers = drivers
        self._symbols = symbols
        self._tables: dict[int, UnwindTable] = {}

    def is_code(self, address: int) -> bool:
        """Tell whether an address lies in a module and, where its headers can be read, in a section of code."""
        driver = self._driver(address)
        if driver is None:
            return False
        header = self._drivers.image(driver).header
        if header is None or not header.sections:
            return address != driver.base
        section = header.section_at(address - driver.base)
        return section is not None and bool(section.characteristics & _EXECUTABLE)

    def call_before(self, address: int) -> CallBefore:
        """Look for the call that ends at an address."""
        return find_call(self._memory.read, address, self._memory.pointer_size)

    def read_code(self, address: int, length: int) -> bytes | None:
        """Read bytes of code."""
        return self._memory.read(address, length)

    def function(self, address: int) -> int | None:
        """Return where the function that holds an address starts, None where nothing tells."""
        driver = self._driver(address)
        if driver is None:
            return None
        if self._drivers.is_kernel(driver):
            nearest = self._symbols.nearest(address)
            return None if nearest is None else address - nearest[1]
        table = self.unwind_table(address)
        entry = None if table is None else table.table.find(address - driver.base)
        return driver.base + entry.begin if isinstance(entry, RuntimeFunction) else None

    def same_module(self, one: int, other: int) -> bool:
        """Tell whether two addresses lie in one module."""
        return self._driver(one) == self._driver(other)

    def is_dispatcher(self, address: int) -> bool:
        """Tell whether what lies there jumps to an address it was given."""
        driver = self._driver(address)
        if driver is None:
            return any(self._driver(address - page * PAGE) is not None for page in range(1, _STUB_PAGES + 1))
        if self._drivers.is_kernel(driver):
            nearest = self._symbols.nearest(address)
            if nearest is not None and any(part in nearest[0] for part in _DISPATCHERS):
                return True
        code = self._memory.read(address, 3)
        return code is not None and code.startswith(_JUMPS)

    def unwind_table(self, address: int) -> UnwindTable | None:
        """Return the function table of the module that holds an address."""
        driver = self._driver(address)
        if driver is None or self._memory.pointer_size != 8:
            return None
        table = self._tables.get(driver.base)
        if table is None:
            read = self._drivers.image(driver).read
            table = self._tables[driver.base] = UnwindTable(driver.base, read, FunctionTable(read, driver.size))
        return table

    def _driver(self, address: int) -> Driver | None:
        # Below kernel space lies no module, and asking for a hidden one takes long.
        return self._drivers.holding(address) if address >= self._drivers.kernel_start else None
