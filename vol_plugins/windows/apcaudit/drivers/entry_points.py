"""Whether a function can begin at an address in a module, by the image's headers, function table and names."""

from __future__ import annotations

from ..memory import Memory
from ..model import NotCode
from ..stacks.function_table import FunctionTable
from ..stacks.unwind_info import RuntimeFunction
from .driver import Driver
from .image import Image

# IMAGE_SCN_CNT_CODE and IMAGE_SCN_MEM_EXECUTE, IMAGE_SCN_MEM_DISCARDABLE (winnt.h).
_CODE, _DISCARDABLE = 0x20000020, 0x02000000


def not_code(memory: Memory, image: Image, address: int, names: tuple[str, ...]) -> NotCode | None:
    """Say why no function begins at an address, None where one does or nothing can be told.

    Args:
        memory: the image of memory.
        image: the module that holds the address.
        address: a virtual address in it.
        names: what symbols and exports name at exactly that address.
    """
    driver, header = image.driver, image.header
    # A section whose name is no text is left out by the reader: then nothing can be said of what lies in none.
    if header is None or not header.sections or not header.all_sections:
        return None
    rva = address - driver.base
    if rva < min(section.rva for section in header.sections):
        return NotCode(f"in the headers of {driver.label}", certain=True)
    section = header.section_at(rva)
    if section is None:
        return NotCode(f"in no section of {driver.label}", certain=True)
    if not section.characteristics & _CODE:
        return NotCode(f"in the section {section.name} of {driver.label}, which is not executable", certain=True)
    if section.characteristics & _DISCARDABLE and not memory.partial and memory.physical(address) is None:
        return NotCode(f"in the section {section.name} of {driver.label}, which was discarded", certain=True)
    if names or memory.bits == 32:
        return None
    return _within_function(image, driver, rva)


def _within_function(image: Image, driver: Driver, rva: int) -> NotCode | None:
    """Tell an address inside of a function by the function table; a leaf function has no entry there."""
    entry = FunctionTable(image.read, driver.size).find(rva)
    if not isinstance(entry, RuntimeFunction) or entry.begin == rva:
        return None
    return NotCode(f"{rva - entry.begin:#x} bytes into the function at {driver.label}+{entry.begin:#x}", certain=False)
