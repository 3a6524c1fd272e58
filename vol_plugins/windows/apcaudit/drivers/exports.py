"""The export table of a PE image as it stands in memory, read with bounds on everything."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct, unpack_from

ReadRva = Callable[[int, int], "bytes | None"]
"""Reads bytes at a relative virtual address of the image; None where they cannot be read."""

NAMES_BOUND = 20_000
"""How many exported names are read: twice what ntoskrnl has."""

NAME_BOUND = 128
"""How many bytes of a name are read; what C++ decoration leaves beyond that is cut."""

_PAGE = 0x1000
_DOS_MAGIC = b"MZ"
_PE_MAGIC = b"PE\0\0"
_EXPORT_DIRECTORY = Struct("<IIHHIIIIIII")  # IMAGE_EXPORT_DIRECTORY, winnt.h

# Offset of the data directories in the optional header by its magic (winnt.h, IMAGE_OPTIONAL_HEADER32 and 64).
_DIRECTORIES = {0x10B: 96, 0x20B: 112}


@dataclass(frozen=True, slots=True)
class Exports:
    """The named exports of an image, sorted by relative virtual address; forwarders are left out."""

    addresses: tuple[int, ...] = ()
    names: tuple[str, ...] = ()

    def nearest(self, rva: int) -> tuple[str, int] | None:
        """Return the name at or below a relative virtual address, and the distance in bytes."""
        index = bisect_right(self.addresses, rva) - 1
        return (self.names[index], rva - self.addresses[index]) if index >= 0 else None


def read_exports(read: ReadRva, image_size: int) -> Exports:
    """Read the export table of an image, empty where there is none or where its headers lie.

    Args:
        read: reads bytes of the image.
        image_size: size of the image in bytes; what points beyond it is not followed.
    """
    directory = _export_directory(read)
    if directory is None:
        return Exports()
    rva, size = directory
    data = read(rva, _EXPORT_DIRECTORY.size) if 0 < rva < image_size else None
    if data is None:
        return Exports()
    *_, functions, names, function_table, name_table, ordinal_table = _EXPORT_DIRECTORY.unpack(data)
    functions, names = min(functions, NAMES_BOUND), min(names, NAMES_BOUND)
    function_data = _table(read, function_table, functions * 4, image_size)
    name_data = _table(read, name_table, names * 4, image_size)
    ordinal_data = _table(read, ordinal_table, names * 2, image_size)
    if function_data is None or name_data is None or ordinal_data is None:
        return Exports()
    found: dict[int, str] = {}
    name_rvas, ordinals = unpack_from(f"<{names}I", name_data), unpack_from(f"<{names}H", ordinal_data)
    for name_rva, ordinal in zip(name_rvas, ordinals, strict=True):
        if ordinal >= functions:
            continue
        (address,) = unpack_from("<I", function_data, ordinal * 4)
        if not 0 < address < image_size or rva <= address < rva + size:
            continue  # beyond the image, or a forwarder: its address is that of the text "module.name"
        name = _name(read, name_rva) if name_rva < image_size else None
        if name is not None and (address not in found or name < found[address]):
            found[address] = name
    addresses = tuple(sorted(found))
    return Exports(addresses, tuple(found[address] for address in addresses))


def _export_directory(read: ReadRva) -> tuple[int, int] | None:
    dos = read(0, 0x40)
    if dos is None or not dos.startswith(_DOS_MAGIC):
        return None
    (pe,) = unpack_from("<I", dos, 0x3C)
    header = read(pe, 24 + 2) if pe < 0x1000 else None
    if header is None or not header.startswith(_PE_MAGIC):
        return None
    (magic,) = unpack_from("<H", header, 24)
    if magic not in _DIRECTORIES:
        return None
    directories = read(pe + 24 + _DIRECTORIES[magic] - 4, 12)
    if directories is None:
        return None
    count, rva, size = unpack_from("<III", directories)
    return (rva, size) if count else None


def _table(read: ReadRva, rva: int, length: int, image_size: int) -> bytes | None:
    return read(rva, length) if length and rva + length <= image_size else None


def _name(read: ReadRva, rva: int) -> str | None:
    """Read a name; where the page after it cannot be read, its own page has to hold all of it."""
    data = read(rva, NAME_BOUND)
    if data is None:
        data = read(rva, _PAGE - rva % _PAGE)
        if data is None or b"\0" not in data:
            return None
    name = data.partition(b"\0")[0]
    return name.decode("ascii") if name.isascii() and name.decode("ascii").isprintable() and name else None
