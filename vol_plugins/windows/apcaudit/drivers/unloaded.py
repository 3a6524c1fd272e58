"""MmUnloadedDrivers: where drivers lay that have been unloaded."""

from __future__ import annotations

from dataclasses import dataclass

from ..memory import Memory
from ..symbols import KernelSymbols
from ..text import from_utf16

REMEMBERED = 50
"""How many unloaded drivers the kernel remembers, in a ring (WRK, mm/mi.h: MI_UNLOADED_DRIVERS)."""

_NAME_BOUND = 512
_IMAGE_BOUND = 256 << 20


@dataclass(frozen=True, slots=True)
class UnloadedDriver:
    """A driver that is no longer there: its former range [start, end) and its name."""

    start: int
    end: int
    name: str


def read_unloaded(memory: Memory, symbols: KernelSymbols, kernel_start: int) -> tuple[UnloadedDriver, ...]:
    """Read what the kernel remembers, the whole ring: the index of the newest does not say how many there are.

    Few PDBs have the type. It is { UNICODE_STRING Name; PVOID StartAddress; PVOID EndAddress; LARGE_INTEGER
    CurrentTime } in every version (WRK, mm/mi.h; the 10240 PDB; vol's unloadedmodules-x86 and -x64), 24 bytes on
    x86 and 40 on x64, aligned as the compiler does.
    """
    symbol = symbols.address("MmUnloadedDrivers")
    array = None if symbol is None else memory.pointer(symbol)
    name_size = symbols.size_of("_UNICODE_STRING")
    if not array or not name_size:
        return ()
    pointer = memory.pointer_size
    size = -(-(name_size + 2 * pointer) // 8) * 8 + 8
    drivers = []
    for number in range(REMEMBERED):
        data = memory.read(array + number * size, size)
        if data is None:
            continue
        start = int.from_bytes(data[name_size : name_size + pointer], "little")
        end = int.from_bytes(data[name_size + pointer : name_size + 2 * pointer], "little")
        if kernel_start <= start < end <= start + _IMAGE_BOUND and memory.is_canonical(start):
            drivers.append(UnloadedDriver(start, end, _name(memory, symbols, data) or f"{start:x}"))
    return tuple(drivers)


def _name(memory: Memory, symbols: KernelSymbols, data: bytes) -> str | None:
    length, buffer = symbols.member("_UNICODE_STRING", "Length"), symbols.member("_UNICODE_STRING", "Buffer")
    if length is None or buffer is None:
        return None
    size = int.from_bytes(data[length.offset : length.offset + length.size], "little")
    address = int.from_bytes(data[buffer.offset : buffer.offset + buffer.size], "little")
    text = memory.read(address, min(size, _NAME_BOUND) & ~1) if size and address else None
    return None if text is None else from_utf16(text)
