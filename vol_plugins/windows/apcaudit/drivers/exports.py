"""The export table of a PE image as it stands in memory, read with bounds on everything."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from struct import Struct, unpack_from

from .names import familiar, nearest
from .pe_header import EXPORT, ReadRva, read_header

NAMES_BOUND = 20_000
"""How many exported names are read: twice what ntoskrnl has."""

NAME_BOUND = 128
"""How many bytes of a name are read; what C++ decoration leaves beyond that is cut."""

_PAGE = 0x1000
_EXPORT_DIRECTORY = Struct("<IIHHIIIIIII")  # IMAGE_EXPORT_DIRECTORY, winnt.h


@dataclass(frozen=True, slots=True)
class Exports:
    """The named exports of an image, sorted by relative virtual address.

    One address has one of its names in `names`; `aliases` are all of them where there are more. `forwarders` are
    exports whose code is another module's: own name to `module.name`, as the table has it. `cut` is whether the table
    claims more than was read.
    """

    addresses: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    aliases: Mapping[int, tuple[str, ...]] = field(default_factory=dict, compare=False)
    forwarders: Mapping[str, str] = field(default_factory=dict, compare=False)
    cut: bool = False

    def names_at(self, rva: int) -> tuple[str, ...]:
        """Return every name of what is exported at exactly this relative virtual address."""
        found = self.nearest(rva)
        return self.aliases.get(rva, (found[0],)) if found is not None and not found[1] else ()

    def next(self, rva: int) -> int | None:
        """Return the relative virtual address of the first export behind this one."""
        index = bisect_right(self.addresses, rva)
        return self.addresses[index] if index < len(self.addresses) else None

    def nearest(self, rva: int) -> tuple[str, int] | None:
        """Return the name at or below a relative virtual address, and the distance in bytes."""
        return nearest(self.addresses, self.names, rva)


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
    cut = max(functions, names) > NAMES_BOUND
    functions, names = min(functions, NAMES_BOUND), min(names, NAMES_BOUND)
    function_data = _table(read, function_table, functions * 4, image_size)
    name_data = _table(read, name_table, names * 4, image_size)
    ordinal_data = _table(read, ordinal_table, names * 2, image_size)
    if function_data is None or name_data is None or ordinal_data is None:
        return Exports(cut=cut)
    found: dict[int, list[str]] = {}
    forwarders: dict[str, str] = {}
    name_rvas, ordinals = unpack_from(f"<{names}I", name_data), unpack_from(f"<{names}H", ordinal_data)
    for name_rva, ordinal in zip(name_rvas, ordinals, strict=True):
        if ordinal >= functions:
            continue
        (address,) = unpack_from("<I", function_data, ordinal * 4)
        if not 0 < address < image_size:
            continue
        name = _name(read, name_rva) if name_rva < image_size else None
        if name is None:
            continue
        if rva <= address < rva + size:
            # A forwarder: what is exported is the text "module.name", which lies in the export table itself.
            target = _name(read, address)
            if target is not None and "." in target:
                forwarders[name] = target
            continue
        found.setdefault(address, []).append(name)
    addresses = tuple(sorted(found))
    aliases = {address: tuple(sorted(each)) for address, each in found.items() if len(each) > 1}
    return Exports(addresses, tuple(familiar(found[address]) for address in addresses), aliases, forwarders, cut)


def _export_directory(read: ReadRva) -> tuple[int, int] | None:
    header = read_header(read)
    return None if header is None else header.directory(EXPORT)


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
