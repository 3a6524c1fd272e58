"""Writing kernel structures into virtual memory by the member names of the kernel's layout."""

from __future__ import annotations

import struct

from apcaudit.synthetic.kernels import Kernel
from apcaudit.synthetic.layout import Field, LayoutError
from apcaudit.synthetic.pages import PAE, X64, X86, AddressSpace

_UNSIGNED = {1: "<B", 2: "<H", 4: "<I", 8: "<Q"}


class Memory:
    """A kernel's virtual memory and its structures' members; of a process where its own space is given."""

    def __init__(self, kernel: Kernel, space: AddressSpace | None = None) -> None:
        self.kernel = kernel
        self.layout = kernel.layout
        self.space = space or AddressSpace(X64 if kernel.is_64bit else PAE if kernel.is_pae else X86)
        self.pointer_size = kernel.layout.pointer_size
        self._pointer = struct.Struct("<Q" if kernel.is_64bit else "<I")
        self._links = struct.Struct("<QQ" if kernel.is_64bit else "<II")

    def write(self, address: int, type_name: str, path: str, value: int | bytes, *, optional: bool = False) -> None:
        """Write a member; an optional one that this kernel lacks is left out.

        Integers go to scalars, pointers and bit fields, bytes to anything at most as long as the member.

        Raises:
            LayoutError: the kernel has no such member and it is not optional.
        """
        field = self.layout.find(type_name, path)
        if field is None:
            if optional:
                return
            field = self.layout.field(type_name, path)
        self.space.write(address + field.offset, self.encode(field, value, address))

    def encode(self, field: Field, value: int | bytes, address: int) -> bytes:
        """Make a member's bytes; a bit field's other bits are kept as they are in memory."""
        if isinstance(value, bytes):
            if len(value) > field.size:
                raise LayoutError(f"{len(value)} bytes do not fit a member of {field.size}")
            return value.ljust(field.size, b"\0")
        size = field.size
        if field.bits:
            old = int.from_bytes(self.space.read(address + field.offset, size), "little")
            mask = ((1 << field.bits) - 1) << field.bit
            value = (old & ~mask) | ((value << field.bit) & mask)
        return (value & ((1 << (8 * size)) - 1)).to_bytes(size, "little")

    def read(self, address: int, type_name: str, path: str) -> int:
        """Read a scalar, pointer or bit field."""
        field = self.layout.field(type_name, path)
        value = int.from_bytes(self.space.read(address + field.offset, field.size), "little")
        if field.bits:
            return (value >> field.bit) & ((1 << field.bits) - 1)
        if field.signed and value >> (8 * field.size - 1):
            value -= 1 << (8 * field.size)
        return value

    def has(self, type_name: str, path: str) -> bool:
        """Tell whether this kernel's structure has the member."""
        return self.layout.has(type_name, path)

    def size(self, type_name: str) -> int:
        """Give a type's size in bytes."""
        return self.layout.size(type_name)

    def offset(self, type_name: str, path: str) -> int:
        """Give a member's offset in bytes."""
        return self.layout.offset(type_name, path)

    def write_pointer(self, address: int, value: int) -> None:
        """Write one pointer."""
        self.space.write(address, self._pointer.pack(value & self.layout.pointer_mask))

    def read_pointer(self, address: int) -> int:
        """Read one pointer."""
        return int(self._pointer.unpack(self.space.read(address, self.pointer_size))[0])

    def write_scalar(self, address: int, size: int, value: int) -> None:
        """Write an unsigned number of 1, 2, 4 or 8 bytes."""
        self.space.write(address, struct.pack(_UNSIGNED[size], value & ((1 << (8 * size)) - 1)))

    def link(self, head: int, entries: list[int]) -> None:
        """Make a LIST_ENTRY ring of a head and the entries, by the addresses of their links."""
        mask = self.layout.pointer_mask
        ring = [head, *entries]
        previous = ring[-1]
        for address, following in zip(ring, [*entries, head], strict=True):
            self.space.write(address, self._links.pack(following & mask, previous & mask))
            previous = address

    def entries(self, head: int) -> list[int]:
        """Read the links of an intact ring, the head left out."""
        found = []
        at = self.read_pointer(head)
        while at != head:
            found.append(at)
            at = self.read_pointer(at)
        return found

    def append(self, head: int, entry: int) -> None:
        """Insert an entry at a ring's tail, as InsertTailList does."""
        last = self.read_pointer(head + self.pointer_size)
        self.write_pointer(entry, head)
        self.write_pointer(entry + self.pointer_size, last)
        self.write_pointer(last, entry)
        self.write_pointer(head + self.pointer_size, entry)
