"""Kernel pool: allocations with a _POOL_HEADER, strings, and executive objects behind an _OBJECT_HEADER."""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass

from apcaudit.synthetic.memory import Memory
from apcaudit.synthetic.pages import PAGE

#: POOL_TYPE NonPagedPool as a pool header carries it: index plus one on x86 up to 2003, type itself with the
#: in-use bit afterwards (ReactOS, ntoskrnl/mm/ARM3/expool.c; Volatility's POOL_HEADER and POOL_HEADER_VISTA).
_NON_PAGED_OLD = 1
_NON_PAGED = 2

#: Bytes that the pool grows by.
_GROWTH = 64 * PAGE

#: InfoMask bit of the optional header that holds a name (codemachine.com, article_objectheader.html).
_NAME_INFO = 2

#: Object types: (name, tag before Windows 8, tag since, index in ObTypeIndexTable). The indices follow one another as
#: in Windows, in an order of ours after 2, which is Type itself; the tags are Microsoft's (pooltag.txt), with the
#: protected bit set before Windows 8.
OBJECT_TYPES: tuple[tuple[str, bytes, bytes, int], ...] = (
    ("Type", b"ObjT", b"ObjT", 2),
    ("Directory", b"Dire", b"Dire", 3),
    ("SymbolicLink", b"Sym\xe2", b"Symb", 4),
    ("Token", b"Toke", b"Toke", 5),
    ("Job", b"Job ", b"Job ", 6),
    ("Process", b"Pro\xe3", b"Proc", 7),
    ("Thread", b"Thr\xe5", b"Thre", 8),
    ("Device", b"Dev\xe9", b"Devi", 9),
    ("Driver", b"Dri\xf6", b"Driv", 10),
    ("File", b"Fil\xe5", b"File", 11),
)

#: ObHeaderCookie of Windows 10 and later: random at each start; ours is fixed.
HEADER_COOKIE = 0x5A


@dataclass(frozen=True, slots=True)
class ObjectType:
    """An object type: its _OBJECT_TYPE, pool tag and index."""

    address: int
    tag: bytes
    index: int


class Pool:
    """Non-paged pool: allocations from one growing range, in order, and at addresses that a scene demands."""

    def __init__(self, memory: Memory, start: int) -> None:
        self.memory = memory
        self.layout = memory.layout
        self.alignment = 16 if memory.kernel.is_64bit else 8
        self.types: dict[str, ObjectType] = {}
        self._next = start
        self._end = start
        self._reserved: list[tuple[int, int]] = []
        self._header = memory.size("_POOL_HEADER")
        has_old_types = memory.kernel.version < (6, 0, 0)
        self._pool_type = _NON_PAGED_OLD if has_old_types else _NON_PAGED
        self._headers: dict[tuple[int, bytes], bytes] = {}

    def reserve(self, start: int, end: int) -> None:
        """Keep [start, end) free of ordered allocations."""
        insort(self._reserved, (start, end))

    def _round(self, size: int) -> int:
        return -(-size // self.alignment) * self.alignment

    def take(self, size: int) -> int:
        """Take mapped, zeroed, aligned memory without a pool header."""
        size = self._round(size)
        start = self._next
        if size <= PAGE and start // PAGE != (start + size - 1) // PAGE:
            start = -(-start // PAGE) * PAGE
        for low, high in self._reserved:
            if start < high and low < start + size:
                start = -(-high // PAGE) * PAGE
        if start + size > self._end:
            grow = max(_GROWTH, -(-(start + size - self._end) // PAGE) * PAGE)
            self.memory.space.map(self._end, grow)
            self._end += grow
        self._next = start + size
        return start

    def allocate(self, size: int, tag: bytes, address: int | None = None) -> int:
        """Allocate `size` bytes under a pool tag, at `address` if given; the address is behind the pool header."""
        if address is None and size + self._header > PAGE:
            # Large allocations have whole pages and no header of their own.
            return self.take_pages(size)
        if address is None:
            address = self.take(self._header + size) + self._header
        else:
            self.memory.space.map(address - self._header, self._header + size)
        self.memory.space.write(address - self._header, self.header(size, tag))
        return address

    def take_pages(self, size: int) -> int:
        """Take whole pages, mapped and zeroed."""
        self._next = -(-self._next // PAGE) * PAGE
        start = self.take(-(-size // PAGE) * PAGE)
        self._next = -(-self._next // PAGE) * PAGE
        return start

    def header(self, size: int, tag: bytes) -> bytes:
        """Make the _POOL_HEADER of an allocation of `size` bytes."""
        key = (size, tag)
        if key not in self._headers:
            header = bytearray(self._header)
            for path, value in (
                ("BlockSize", (self._round(size) + self._header) // self.alignment),
                ("PoolType", self._pool_type),
                ("PoolTag", int.from_bytes(tag, "little")),
            ):
                at = self.layout.field("_POOL_HEADER", path)
                old = int.from_bytes(header[at.offset : at.offset + at.size], "little")
                header[at.offset : at.offset + at.size] = (old | value << at.bit).to_bytes(at.size, "little")
            self._headers[key] = bytes(header)
        return self._headers[key]

    def string(self, address: int, type_name: str, path: str, text: str) -> None:
        """Write a UNICODE_STRING member and its buffer."""
        self.unicode_string(address + self.layout.offset(type_name, path), text)

    def unicode_string(self, address: int, text: str) -> None:
        """Write a UNICODE_STRING and its buffer."""
        data = text.encode("utf-16-le")
        buffer = self.allocate(len(data) + 2, b"ObNm")
        self.memory.space.write(buffer, data)
        self.memory.write(address, "_UNICODE_STRING", "Length", len(data))
        self.memory.write(address, "_UNICODE_STRING", "MaximumLength", len(data) + 2)
        self.memory.write(address, "_UNICODE_STRING", "Buffer", buffer)

    def object_prefix(self, named: bool) -> int:
        """Give the bytes in front of an object's body: optional name header and object header."""
        return (self.memory.size("_OBJECT_HEADER_NAME_INFO") if named else 0) + self.body_offset

    @property
    def body_offset(self) -> int:
        """Bytes from an _OBJECT_HEADER to the body behind it."""
        return self.layout.offset("_OBJECT_HEADER", "Body")

    def place_object(
        self, kind: str, size: int, *, name: str | None = None, address: int | None = None, extra: int = 0
    ) -> int:
        """Allocate an executive object of `size` bytes and write its headers; `address` and result are of the body.

        `extra` bytes follow the body (a driver object's extension).
        """
        object_type = self.types[kind]
        prefix = self.object_prefix(name is not None)
        size = self._round(size) + extra
        # The body has to end with the block: before Windows 8 scanners find it from the end.
        lead = self._round(prefix)
        start = None if address is None else address - lead
        block = self.allocate(lead + size, object_type.tag, start)
        body = block + lead
        self.write_object_header(body, object_type, named=name is not None)
        if name is not None:
            info = body - prefix
            self.string(info, "_OBJECT_HEADER_NAME_INFO", "Name", name)
        return body

    def write_object_header(self, body: int, object_type: ObjectType, *, named: bool = False) -> None:
        """Write the _OBJECT_HEADER in front of a body."""
        memory, header = self.memory, body - self.body_offset
        data = bytearray(self.body_offset)
        values = {"PointerCount": 3, "HandleCount": 1}
        if memory.has("_OBJECT_HEADER", "TypeIndex"):
            index = object_type.index
            if memory.kernel.has("ObHeaderCookie"):
                # Windows 10 mixes in the header's second address byte and a cookie.
                index ^= ((header >> 8) & 0xFF) ^ HEADER_COOKIE
            values |= {"TypeIndex": index, "InfoMask": _NAME_INFO if named else 0}
        else:
            offset = memory.size("_OBJECT_HEADER_NAME_INFO") if named else 0
            values |= {"Type": object_type.address, "NameInfoOffset": offset}
        for path, value in values.items():
            at = self.layout.field("_OBJECT_HEADER", path)
            data[at.offset : at.offset + at.size] = memory.encode(at, value, header)
        memory.space.write(header, bytes(data))

    def create_types(self) -> None:
        """Create the object types and the kernel's tables of them."""
        kernel, memory = self.memory.kernel, self.memory
        old = not memory.has("_KTHREAD", "SchedulerApc")
        addresses = {
            name: self.allocate(self._round(self.body_offset) + memory.size("_OBJECT_TYPE"), b"ObjT")
            + self._round(self.body_offset)
            for name, *_ in OBJECT_TYPES
        }
        self.types = {
            name: ObjectType(addresses[name], before if old else since, index)
            for name, before, since, index in OBJECT_TYPES
        }
        for name, object_type in self.types.items():
            self.write_object_header(object_type.address, self.types["Type"])
            self.string(object_type.address, "_OBJECT_TYPE", "Name", name)
            memory.write(object_type.address, "_OBJECT_TYPE", "Index", object_type.index, optional=True)
        if kernel.has("ObTypeIndexTable"):
            table = kernel.address("ObTypeIndexTable")
            memory.space.map(table, 0x800)
            # Entry 1 is a marker that Windows puts there.
            memory.write_pointer(table + memory.pointer_size, 0xBAD0B0B0)
            for object_type in self.types.values():
                memory.write_pointer(table + object_type.index * memory.pointer_size, object_type.address)
        elif kernel.has("ObpObjectTypes"):
            table = kernel.address("ObpObjectTypes")
            memory.space.map(table, 0x400)
            for position, object_type in enumerate(self.types.values()):
                memory.write_pointer(table + position * memory.pointer_size, object_type.address)
        self._write_info_mask_offsets()

    def _write_info_mask_offsets(self) -> None:
        """Fill the table that turns an InfoMask into an optional header's distance."""
        kernel, memory = self.memory.kernel, self.memory
        if not kernel.has("ObpInfoMaskToOffset"):
            return
        names = ("CREATOR_INFO", "NAME_INFO", "HANDLE_INFO", "QUOTA_INFO", "PROCESS_INFO")
        types = [f"_OBJECT_HEADER_{name}" for name in names]
        sizes = [memory.size(each) if memory.layout.has_type(each) else 0 for each in types]
        table = bytes(sum(size for bit, size in enumerate(sizes) if mask >> bit & 1) & 0xFF for mask in range(0x100))
        memory.space.map(kernel.address("ObpInfoMaskToOffset"), len(table))
        memory.space.write(kernel.address("ObpInfoMaskToOffset"), table)
