"""Data directories of a PE image: exports, imports, and the function table for the size of a function."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from struct import Struct, unpack_from

from ..windows import PAGE_SIZE
from .pe import EXPORT, IAT, IMPORT, MACHINES, Header, ReadRva, read_header
from .text import choose_name, nearest
from .unwind_info import FunctionTable, NoEntry

NAMES_BOUND = 20_000
"""How many exported names are read; ntoskrnl has half as many."""

NAME_BOUND = 128
"""How many bytes of a name are read; longer (decorated C++) names are cut."""

_EXPORT_DIRECTORY = Struct("<IIHHIIIIIII")  # IMAGE_EXPORT_DIRECTORY, winnt.h


@dataclass(frozen=True, slots=True)
class Exports:
    """The named exports of an image, sorted by relative virtual address.

    `names` has one name for each address; `aliases` has all names of those addresses that have more than one.
    `forwarders` maps the name of a forwarded export to its target, `module.name`. `cut` is whether the table claims
    more entries than were read, `unread` whether a name could not be read, or all of them, `disordered` whether they
    are not in the order in which the loader looks them up.
    """

    addresses: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    aliases: Mapping[int, tuple[str, ...]] = field(default_factory=dict, compare=False)
    forwarders: Mapping[str, str] = field(default_factory=dict, compare=False)
    cut: bool = False
    unread: bool = field(default=False, compare=False)
    disordered: bool = field(default=False, compare=False)

    def names_at(self, rva: int) -> tuple[str, ...]:
        """Return every name exported at exactly this relative virtual address."""
        found = self.nearest(rva)
        return self.aliases.get(rva, (found[0],)) if found is not None and not found[1] else ()

    def next(self, rva: int) -> int | None:
        """Return the relative virtual address of the first export above this address."""
        index = bisect_right(self.addresses, rva)
        return self.addresses[index] if index < len(self.addresses) else None

    def nearest(self, rva: int) -> tuple[str, int] | None:
        """Return the nearest name at or below a relative virtual address, and the distance in bytes."""
        return nearest(self.addresses, self.names, rva)


def read_exports(read: ReadRva, image_size: int) -> Exports:
    """Read the export table of an image; empty where there is none or it cannot be read.

    Args:
        read: reads bytes of the image.
        image_size: size of the image in bytes; addresses beyond it are ignored.
    """
    directory = _export_directory(read)
    if directory is None:
        return Exports()
    rva, size = directory
    data = read(rva, _EXPORT_DIRECTORY.size) if 0 < rva < image_size else None
    if data is None:
        return Exports(unread=True)
    *_, functions, names, function_table, name_table, ordinal_table = _EXPORT_DIRECTORY.unpack(data)
    cut = max(functions, names) > NAMES_BOUND
    functions, names = min(functions, NAMES_BOUND), min(names, NAMES_BOUND)
    function_data = _table(read, function_table, functions * 4, image_size)
    name_data = _table(read, name_table, names * 4, image_size)
    ordinal_data = _table(read, ordinal_table, names * 2, image_size)
    if function_data is None or name_data is None or ordinal_data is None:
        return Exports(cut=cut, unread=names > 0)
    found: dict[int, list[str]] = {}
    forwarders: dict[str, str] = {}
    unread, disordered, last = False, False, ""
    name_rvas, ordinals = unpack_from(f"<{names}I", name_data), unpack_from(f"<{names}H", ordinal_data)
    for name_rva, ordinal in zip(name_rvas, ordinals, strict=True):
        if ordinal >= functions:
            continue
        (address,) = unpack_from("<I", function_data, ordinal * 4)
        if not 0 < address < image_size:
            continue
        name = _name(read, name_rva) if name_rva < image_size else None
        if name is None:
            unread = True
            continue
        disordered, last = disordered or name < last, name
        if rva <= address < rva + size:
            # A forwarder: the address is inside the export directory and holds the text "module.name".
            target = _name(read, address)
            if target is not None and "." in target:
                forwarders[name] = target
            continue
        found.setdefault(address, []).append(name)
    addresses = tuple(sorted(found))
    aliases = {address: tuple(sorted(each)) for address, each in found.items() if len(each) > 1}
    chosen = tuple(choose_name(found[address]) for address in addresses)
    return Exports(addresses, chosen, aliases, forwarders, cut, unread, disordered)


def _export_directory(read: ReadRva) -> tuple[int, int] | None:
    header = read_header(read)
    return None if header is None else header.directory(EXPORT)


def _table(read: ReadRva, rva: int, length: int, image_size: int) -> bytes | None:
    return read(rva, length) if length and rva + length <= image_size else None


def _name(read: ReadRva, rva: int) -> str | None:
    """Read a name; where the next page cannot be read, the name must end within its own page."""
    data = read(rva, NAME_BOUND)
    if data is None:
        data = read(rva, PAGE_SIZE - rva % PAGE_SIZE)
        if data is None or b"\0" not in data:
            return None
    name = data.partition(b"\0")[0]
    return name.decode("ascii") if name.isascii() and name.decode("ascii").isprintable() and name else None


SLOTS_BOUND = 4096
"""How many imported functions are read; the largest drivers import some two thousand."""

_DESCRIPTORS_BOUND = 256
_DESCRIPTOR = Struct("<IIIII")  # IMAGE_IMPORT_DESCRIPTOR


def read_import_addresses(read: ReadRva, header: Header, pointer_size: int) -> dict[int, int]:
    """Return the imported addresses by the relative virtual address of their slots.

    The import address table is preferred to the import descriptors: most drivers keep those in INIT, which is discarded
    after initialization.
    """
    slots: dict[int, int] = {}
    directory = header.directory(IAT)
    if directory is not None:
        rva, size = directory
        _read_slots(read, rva, min(size // pointer_size, SLOTS_BOUND), pointer_size, slots, stop=False)
        return slots
    directory = header.directory(IMPORT)
    if directory is None:
        return slots
    for index in range(min(directory[1] // _DESCRIPTOR.size, _DESCRIPTORS_BOUND)):
        data = read(directory[0] + index * _DESCRIPTOR.size, _DESCRIPTOR.size)
        if data is None or not any(data):
            break
        first = _DESCRIPTOR.unpack(data)[4]
        if 0 < first < header.size_of_image:
            _read_slots(read, first, SLOTS_BOUND - len(slots), pointer_size, slots, stop=True)
    return slots


def _read_slots(read: ReadRva, rva: int, count: int, pointer_size: int, slots: dict[int, int], *, stop: bool) -> None:
    """Read pointers into `slots`, at once or, where that fails, one by one; with `stop`, end at the first null."""
    form = "<I" if pointer_size == 4 else "<Q"
    whole = None if stop else read(rva, count * pointer_size)
    for index in range(count):
        at = rva + index * pointer_size
        data = whole[index * pointer_size : (index + 1) * pointer_size] if whole is not None else read(at, pointer_size)
        if data is None and stop:
            return
        address = 0 if data is None else unpack_from(form, data)[0]
        if address:
            slots[at] = address
        elif stop:
            return


DEFAULT_SIZE = 0x400
"""The assumed size in bytes of a function whose end is unknown; few start routines are longer."""


def function_size(read: ReadRva, header: Header | None, exports: Exports, rva: int, limit: int) -> int:
    """Return the number of bytes from an address to the end of the function that contains it.

    The end is that of the x64 function table's entry, else the nearest of: the next export, the end of the section,
    DEFAULT_SIZE.

    Args:
        read: reads bytes of the image.
        header: its headers, None where there are none.
        exports: its exports.
        rva: the relative virtual address, usually the function's first byte.
        limit: the image's size in bytes.
    """
    if header is not None and header.machine == MACHINES[64]:
        entry = FunctionTable(read, limit, header).containing(rva)
        if not isinstance(entry, NoEntry):
            return min(entry.end, limit) - rva
    ends = [limit, rva + DEFAULT_SIZE]
    section = None if header is None else header.section_at(rva)
    if section is not None:
        ends.append(section.rva + section.size)
    following = exports.next(rva)
    if following is not None:
        ends.append(following)
    return max(min(ends) - rva, 0)
