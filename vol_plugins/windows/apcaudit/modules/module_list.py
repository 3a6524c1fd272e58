"""Reads the kernel's lists of loaded (PsLoadedModuleList) and unloaded modules (MmUnloadedDrivers)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..formats.pe import IMAGE_BOUND
from ..formats.text import from_utf16, printable
from ..image import Memory
from ..image.structures import read_member, read_unicode_string, walk_both_ways
from ..image.symbols import KernelSymbols
from ..windows import PAGE_SIZE
from .driver import Driver, Image

MODULE_BOUND = 4096
"""How many entries of PsLoadedModuleList are followed; Windows has some two hundred."""


def read_module_list(memory: Memory, symbols: KernelSymbols) -> tuple[tuple[Driver, ...], bool]:
    """Read PsLoadedModuleList by Flink, and by Blink too if any link disagrees.

    Returns:
        The modules, and whether the Flinks return to the head, every entry could be read and there is at least one.
    """
    head = symbols.address("PsLoadedModuleList")
    structure = "_KLDR_DATA_TABLE_ENTRY" if symbols.has_type("_KLDR_DATA_TABLE_ENTRY") else "_LDR_DATA_TABLE_ENTRY"
    if head is None:
        return (), False
    entries, complete = walk_both_ways(memory, head, MODULE_BOUND, skipped=True)
    drivers = []
    for entry in entries:
        driver = _read_driver(memory, symbols, structure, entry)
        if driver is None:
            complete = False
        else:
            drivers.append(driver)
    return tuple(drivers), complete and bool(drivers)


def _read_driver(memory: Memory, symbols: KernelSymbols, structure: str, entry: int) -> Driver | None:
    # If the symbol table lacks the member, its offset is 0: it is the first member in every version.
    links = symbols.member(structure, "InLoadOrderLinks.Flink")
    start = entry - links.offset if links is not None else entry
    base = read_member(memory, symbols, structure, "DllBase", start)
    size = read_member(memory, symbols, structure, "SizeOfImage", start)
    if base is None or size is None:
        return None
    name = read_unicode_string(memory, symbols, structure, "BaseDllName", start)
    path = read_unicode_string(memory, symbols, structure, "FullDllName", start)
    driver = Driver(base, size, name or printable((path or "").rpartition("\\")[2]), path or "")
    return driver if 0 < size <= IMAGE_BOUND else _of_believable_size(driver, memory)


def _of_believable_size(driver: Driver, memory: Memory) -> Driver:
    """Replace an impossible SizeOfImage by that of the image's own header, or by the largest plausible one."""
    header = Image(driver, memory).header
    own = 0 if header is None else -(-header.size_of_image // PAGE_SIZE) * PAGE_SIZE
    return replace(driver, size=own if 0 < own <= IMAGE_BOUND else IMAGE_BOUND, claimed=driver.size)


REMEMBERED = 50
"""How many unloaded drivers the kernel remembers (WRK, mm/mi.h: MI_UNLOADED_DRIVERS)."""

_NAME_BOUND = 512  # bytes of a name that are read


@dataclass(frozen=True, slots=True)
class UnloadedDriver:
    """An unloaded driver: its former range [start, end) and its name."""

    start: int
    end: int
    name: str


def read_unloaded(memory: Memory, symbols: KernelSymbols, kernel_start: int) -> tuple[UnloadedDriver, ...]:
    """Read all entries of MmUnloadedDrivers; MmLastUnloadedDriver does not say how many of them are in use.

    Few PDBs have the type. It is { UNICODE_STRING Name; PVOID StartAddress; PVOID EndAddress; LARGE_INTEGER
    CurrentTime } in every version (WRK, mm/mi.h; the 10240 PDB; vol's unloadedmodules-x86 and -x64), with natural
    alignment: 24 bytes on x86 and 40 on x64.
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
        if kernel_start <= start < end <= start + IMAGE_BOUND and memory.is_canonical(start):
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
