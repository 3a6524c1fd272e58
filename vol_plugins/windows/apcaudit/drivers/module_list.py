"""PsLoadedModuleList: the modules that the kernel lists, and whether the list could be read whole."""

from __future__ import annotations

from dataclasses import replace

from ..memory import PAGE, Memory
from ..structures import both_ways, read_member, read_unicode_string
from ..symbols import KernelSymbols
from ..text import printable
from .driver import Driver
from .image import Image
from .pe_header import IMAGE_BOUND

MODULE_BOUND = 4096
"""How many entries of PsLoadedModuleList are followed; Windows has some two hundred."""


def read_module_list(memory: Memory, symbols: KernelSymbols) -> tuple[tuple[Driver, ...], bool]:
    """Read the list; one that is broken is followed from its other end too.

    Returns:
        The modules, and whether the list was read whole.
    """
    head = symbols.address("PsLoadedModuleList")
    structure = "_KLDR_DATA_TABLE_ENTRY" if symbols.has_type("_KLDR_DATA_TABLE_ENTRY") else "_LDR_DATA_TABLE_ENTRY"
    if head is None:
        return (), False
    entries, complete = both_ways(memory, head, MODULE_BOUND, skipped=True)
    drivers = []
    for entry in entries:
        driver = _read_driver(memory, symbols, structure, entry)
        if driver is None:
            complete = False
        else:
            drivers.append(driver)
    return tuple(drivers), complete and bool(drivers)


def _read_driver(memory: Memory, symbols: KernelSymbols, structure: str, entry: int) -> Driver | None:
    # InLoadOrderLinks is the first member in every version: the list links entries by their start.
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
    """Give a driver whose entry claims what no driver has the size that its image's own header says."""
    header = Image(driver, memory).header
    own = 0 if header is None else -(-header.size_of_image // PAGE) * PAGE
    return replace(driver, size=own if 0 < own <= IMAGE_BOUND else IMAGE_BOUND, claimed=driver.size)
