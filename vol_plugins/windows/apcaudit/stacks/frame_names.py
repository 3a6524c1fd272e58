"""The names of frames: which function the address of a frame lies in, where the nearest symbol alone may be wrong."""

from __future__ import annotations

from dataclasses import replace

from ..drivers.loaded import Drivers
from ..model import Code
from .function_table import NoEntry
from .module_code import ModuleCode
from .unwind import CHAIN_BOUND
from .unwind_info import RuntimeFunction, read_unwind_info
from .walk_x64 import UnwindTable

_STRING = "??_C@"
"""What the names begin with that Microsoft's compiler gives to string literals, which lie between functions."""


class FrameNames:
    """Names the code addresses of frames."""

    def __init__(self, drivers: Drivers, code: ModuleCode) -> None:
        self._drivers = drivers
        self._code = code

    def of(self, address: int, *, exact: bool) -> Code:
        """Name an address, `exact` if it is that of an instruction about to run, and no return address."""
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
        if not exact and nearest is not None and nearest[1] == 0:
            if self._ends(address):
                before = self._drivers.nearest(inside)
                nearest = None if before is None else (before[0], before[1] + 1)
            else:
                inside = address
        if nearest is None or not self._drivers.has_symbols(address):
            return nearest
        return None if nearest[0].startswith(_STRING) else self._in_function(address, inside, nearest)

    def _ends(self, address: int) -> bool:
        """Tell whether the function of the call before an address ends there, so that what begins there is another's.

        A call that never returns may be the last instruction of its function. On x64 the function table proves where a
        function ends. Where nothing does, symbols serve: they name every function, so that what they name lies behind
        the end of the one before. An export proves nothing: it may be a name for the middle of a function, or the
        functions before it have none, and debuggers print it as it is.
        """
        if self._code.call_before(address).follows is False:
            return False
        table = self._code.unwind_table(address)
        entry = NoEntry.UNREADABLE if table is None else table.table.find(address - 1 - table.base)
        if table is not None and isinstance(entry, RuntimeFunction):
            return table.base + entry.end == address
        return entry is NoEntry.UNREADABLE and self._drivers.has_symbols(address)

    def _in_function(self, address: int, inside: int, nearest: tuple[str, int]) -> tuple[str, int] | None:
        """Return the nearest symbol if it is the function's, else that of the function that its code was split off.

        Where the function table shows neither, no symbol names it: None.
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
        start = table.base + _whole(table, entry).begin
        named = self._drivers.nearest(start)
        return (named[0], address - start) if named is not None and named[1] == 0 and start <= address else None


def _whole(table: UnwindTable, entry: RuntimeFunction) -> RuntimeFunction:
    """Return the entry of the function that a part is chained to, the part itself where it is chained to none."""
    for _ in range(CHAIN_BOUND):
        info = read_unwind_info(table.read, entry.unwind_data)
        if info is None or info.chained is None:
            break
        entry = info.chained
    return entry
