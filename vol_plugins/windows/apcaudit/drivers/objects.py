r"""DRIVER_OBJECTs by way of the object directories \Driver and \FileSystem: which images the I/O manager knows."""

from __future__ import annotations

from collections.abc import Iterator

from ..memory import Memory
from ..object_names import object_name
from ..structures import read_member, read_unicode_string
from ..symbols import KernelSymbols
from .driver import Driver, Source
from .pe_header import IMAGE_BOUND

FOLDERS = ("Driver", "FileSystem")
"""The directories that the I/O manager puts driver objects in (WDK, "Object Directories")."""

BUCKETS = 37
"""_OBJECT_DIRECTORY.HashBuckets has so many in every version (symbol files, XP to 11)."""

OBJECTS_BOUND = 4096
"""How many entries of a directory are followed; Windows has some two hundred drivers."""

_DRIVER_TYPE = 4  # IO_TYPE_DRIVER (WDK, wdm.h)


def read_driver_objects(memory: Memory, symbols: KernelSymbols) -> tuple[Driver, ...]:
    """Read the driver objects that have a name, none where the directories cannot be reached."""
    symbol = symbols.address("ObpRootDirectoryObject")
    root = None if symbol is None else memory.pointer(symbol)
    if not root or not symbols.has_type("_OBJECT_DIRECTORY"):
        return ()
    folders = [body for body in _entries(memory, symbols, root) if object_name(memory, symbols, body) in FOLDERS]
    found = (_driver(memory, symbols, body) for folder in folders for body in _entries(memory, symbols, folder))
    return tuple(driver for driver in found if driver is not None)


def _entries(memory: Memory, symbols: KernelSymbols, directory: int) -> Iterator[int]:
    """Yield the objects of an _OBJECT_DIRECTORY; a chain ends where it cannot be read or comes back."""
    seen: set[int] = set()
    for bucket in range(BUCKETS):
        entry = read_member(memory, symbols, "_OBJECT_DIRECTORY", f"HashBuckets[{bucket}]", directory)
        while entry and entry not in seen and len(seen) < OBJECTS_BOUND:
            seen.add(entry)
            body = read_member(memory, symbols, "_OBJECT_DIRECTORY_ENTRY", "Object", entry)
            if body:
                yield body
            entry = read_member(memory, symbols, "_OBJECT_DIRECTORY_ENTRY", "ChainLink", entry)


def _driver(memory: Memory, symbols: KernelSymbols, body: int) -> Driver | None:
    def member(name: str) -> int | None:
        return read_member(memory, symbols, "_DRIVER_OBJECT", name, body)

    start, size = member("DriverStart"), member("DriverSize")
    if member("Type") != _DRIVER_TYPE or not start or not size or size > IMAGE_BOUND:
        return None
    path = read_unicode_string(memory, symbols, "_DRIVER_OBJECT", "DriverName", body) or ""
    return Driver(start, size, path.rpartition("\\")[2], path, Source.OBJECT)
