"""Names the code addresses of frames, and finds the functions that contain them."""

from __future__ import annotations

from dataclasses import replace

from ..formats.unwind_info import FunctionTable, NoEntry, RuntimeFunction, read_unwind_info
from ..kernel import Kernel
from ..model import Code
from ..modules import Drivers
from ..modules.driver import Driver
from ..unwind.scan import CallBefore, find_call
from ..unwind.x64 import CHAIN_BOUND, UnwindTable
from ..windows import PAGE_SIZE

_EXECUTABLE = 0x20000000  # IMAGE_SCN_MEM_EXECUTE (winnt.h)

# Parts of the names of nt's routines that call a variable address: control flow guard and retpolines.
_DISPATCHERS = ("guard_dispatch", "guard_check", "retpoline")
# Since Windows 10 1809 the call stubs of a driver built for retpolines are directly behind its image (Microsoft,
# "Mitigating Spectre variant 2 with Retpoline on Windows"; a genuine dump of 19041 has calls to 0x12a0 bytes behind
# it).
_STUB_PAGES = 16
# jmp to a register or through memory, in import thunks and those routines (Intel SDM volume 2, JMP).
_JUMPS = (b"\xff\x25", b"\xff\xe0", b"\x48\xff\x25", b"\x48\xff\xe0", b"\x41\xff")


class ModuleCode:
    """The CodeView of one image; function tables are cached by module."""

    def __init__(self, kernel: Kernel) -> None:
        self._memory, self._drivers, self._symbols = kernel.memory, kernel.drivers, kernel.symbols
        self._tables: dict[int, UnwindTable] = {}

    def is_code(self, address: int) -> bool:
        """Return whether an address is in a module and, where its headers can be read, in an executable section."""
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
        call = find_call(self._memory.read, address, self._memory.pointer_size)
        return call if call.pointer is None else replace(call, through=self._memory.pointer(call.pointer))

    def read_code(self, address: int, length: int) -> bytes | None:
        """Read bytes of code; None unless all of them can be read."""
        return self._memory.read(address, length)

    def read_ahead(self, address: int, length: int) -> bytes:
        """Read code from an address on, as many bytes up to a length as can be read."""
        code = self._memory.read(address, length)
        if code is not None:
            return code
        data, holes = self._memory.read_sparse(address, length)
        return data[: holes[0][0]] if holes else data

    def function(self, address: int) -> int | None:
        """Return the start of the function that contains an address; None where it is unknown."""
        driver = self._driver(address)
        if driver is None:
            return None
        if self._drivers.is_kernel(driver):
            nearest = self._drivers.nearest(address)
            return None if nearest is None else address - nearest[1]
        table = self.unwind_table(address)
        entry = None if table is None else table.table.find(address - driver.base)
        return driver.base + entry.begin if isinstance(entry, RuntimeFunction) else None

    def same_module(self, one: int, other: int) -> bool:
        """Return whether two addresses are in the same module."""
        return self._driver(one) == self._driver(other)

    def is_dispatcher(self, address: int) -> bool:
        """Return whether the code there jumps to a variable address."""
        driver = self._driver(address)
        if driver is None:
            return any(self._driver(address - page * PAGE_SIZE) is not None for page in range(1, _STUB_PAGES + 1))
        if self._drivers.is_kernel(driver):
            nearest = self._symbols.nearest(address)
            if nearest is not None and any(part in nearest[0] for part in _DISPATCHERS):
                return True
        code = self._memory.read(address, 3)
        return code is not None and code.startswith(_JUMPS)

    def unwind_table(self, address: int) -> UnwindTable | None:
        """Return the function table of the module that contains an address; None on x86 or outside of modules."""
        driver = self._driver(address)
        if driver is None or self._memory.pointer_size != 8:
            return None
        table = self._tables.get(driver.base)
        if table is None:
            read = self._drivers.image(driver).read
            table = self._tables[driver.base] = UnwindTable(driver.base, read, FunctionTable(read, driver.size))
        return table

    def _driver(self, address: int) -> Driver | None:
        # No module is below kernel space, and the search for a hidden one is slow.
        return self._drivers.find(address) if address >= self._drivers.kernel_start else None


class FrameNames:
    """Names the code addresses of frames."""

    def __init__(self, drivers: Drivers, code: ModuleCode) -> None:
        self._drivers = drivers
        self._code = code

    def name(self, address: int, *, exact: bool) -> Code:
        """Name an address; `exact` is whether it is the next instruction, False if it is a return address."""
        plain = self._drivers.code(address)
        if plain.module is None:
            return plain
        nearest = self._nearest(address, exact=exact)
        if nearest == self._drivers.nearest(address):
            return plain
        return replace(self._drivers.named(address, nearest), doubt=plain.doubt)

    def _nearest(self, address: int, *, exact: bool) -> tuple[str, int] | None:
        nearest = self._drivers.nearest(address)
        inside = address if exact else address - 1
        if not exact and (nearest is None or nearest[1] == 0):
            # Data may follow the last call of a function, too.
            if nearest is None or self._function_ends_at(address):
                before = self._drivers.nearest(inside)
                nearest = None if before is None else (before[0], before[1] + 1)
            else:
                inside = address
        return None if nearest is None else self._in_function(address, inside, nearest)

    def _function_ends_at(self, address: int) -> bool:
        """Return whether the function that contains the call before an address ends at that address.

        A call that never returns may be the last instruction of its function. On x64 the function table gives the end.
        Otherwise symbols are used: they name every function, so that a symbol at the address starts another one. An
        export proves nothing: it may name the middle of a function, or the functions before it are not exported.
        Debuggers print such an export unchanged.
        """
        if self._code.call_before(address).follows is False:
            return False
        table = self._code.unwind_table(address)
        entry = NoEntry.UNREADABLE if table is None else table.table.find(address - 1 - table.base)
        if table is not None and isinstance(entry, RuntimeFunction):
            return table.base + entry.end == address
        return entry is NoEntry.UNREADABLE and self._drivers.has_symbols(address)

    def _in_function(self, address: int, inside: int, nearest: tuple[str, int]) -> tuple[str, int] | None:
        """Return the nearest symbol if it belongs to the function, else that of the function from which it was split.

        None where by the function table neither symbol belongs to it.
        """
        table = self._code.unwind_table(inside)
        if table is None:
            return nearest
        symbol = address - nearest[1] - table.base
        entry = table.table.find(inside - table.base)
        if entry is NoEntry.LEAF:
            before = table.table.find(symbol)
            return None if isinstance(before, RuntimeFunction) and before.end <= inside - table.base else nearest
        if not isinstance(entry, RuntimeFunction) or entry.begin <= symbol:
            return nearest
        start = table.base + _primary_entry(table, entry).begin
        named = self._drivers.nearest(start)
        return (named[0], address - start) if named is not None and named[1] == 0 and start <= address else None


def _primary_entry(table: UnwindTable, entry: RuntimeFunction) -> RuntimeFunction:
    """Return the entry of the function to which a part is chained; the entry itself if it is not chained."""
    for _ in range(CHAIN_BOUND):
        info = read_unwind_info(table.read, entry.unwind_data)
        if info is None or info.chained is None:
            break
        entry = info.chained
    return entry
