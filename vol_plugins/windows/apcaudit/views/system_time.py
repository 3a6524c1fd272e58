"""When the image was taken, by the machine's own clock, and what is later than that."""

from __future__ import annotations

from ..memory import Memory
from ..structures import read_member
from ..symbols import KernelSymbols
from ..windows_version import SHARED_DATA

_XP_FLAG_BITS = 3  # _ETHREAD.CreateTime of XP: NestedFaultCount and ApcNeeded below the time (public PDB)

_MARGIN = 10_000_000
"""100 ns units, one second: a thread takes that long from its CID to its place in the list, and far less."""


def create_time_shift(symbols: KernelSymbols) -> int:
    """Return how many bits _ETHREAD.CreateTime is shifted to the left of a FILETIME."""
    return _XP_FLAG_BITS if symbols.member("_ETHREAD", "NestedFaultCount") is not None else 0


class SystemTime:
    """The system time in the page shared with user mode, None where the image does not have it."""

    def __init__(self, memory: Memory, symbols: KernelSymbols) -> None:
        address = SHARED_DATA[memory.pointer_size]
        low, high = (
            read_member(memory, symbols, "_KUSER_SHARED_DATA", f"SystemTime.{part}", address)
            for part in ("LowPart", "High1Time")
        )
        self.value = (high << 32) + (low & 0xFFFFFFFF) if low is not None and high else None
        self._shift = create_time_shift(symbols)

    def is_after(self, create_time: int | None) -> bool | None:
        """Tell whether a _ETHREAD.CreateTime is no earlier than the second before the clock was copied.

        A running machine's memory is copied over minutes: what began later than its clock's page was copied is in
        some of the image and not in the rest.
        """
        if self.value is None or not create_time:
            return None
        return create_time >> self._shift > self.value - _MARGIN
