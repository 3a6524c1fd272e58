"""The import address table of an image as it stands in memory: addresses, whoever put them there."""

from __future__ import annotations

from struct import Struct, unpack_from

from .pe_header import IAT, IMPORT, Header, ReadRva

SLOTS_BOUND = 4096
"""How many imported functions are read: the largest drivers import some two thousand."""

_DESCRIPTORS_BOUND = 256
_DESCRIPTOR = Struct("<IIIII")  # IMAGE_IMPORT_DESCRIPTOR


def read_import_addresses(read: ReadRva, header: Header, pointer_size: int) -> dict[int, int]:
    """Read an image's imported addresses by the relative virtual address of their slots.

    The table itself is asked for, not the import descriptors, which most drivers have in INIT: that section is
    discarded once they run.
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
    """Read pointers, all of them at once or, where that fails, one by one; `stop` ends at a null."""
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
