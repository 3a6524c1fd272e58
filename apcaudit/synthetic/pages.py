"""Physical memory and page tables: x86, x86 PAE (three levels) and x64 (four levels).

Sources: Intel SDM volume 3, chapter 4 (entry formats); Windows maps its page tables into their own address space by an
entry of the top table that points back at it, which is what memory forensics looks for.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

from apcaudit.errors import ApcAuditError

PAGE = 0x1000

#: present, writable, accessed, dirty: what Windows sets in a valid kernel page's entry (0x63), and in the entries of
#: the tables above it.
_VALID = 0x63
#: ... and user-accessible, which user pages and the tables above them are (0x67).
_VALID_USER = 0x67


@dataclass(frozen=True, slots=True)
class Mode:
    """A paging mode: entry size in bytes, index bits of each table from the top, and the self-reference."""

    name: str
    entry: str
    shifts: tuple[int, ...]
    bits: tuple[int, ...]
    #: physical address of the top table. Volatility looks for recent x64 kernels' between 0x150000 and 0x2a0000.
    root: int
    self_index: int
    #: physical address of the first frame handed out: behind the range that Volatility looks in for the root
    #: (0x150000 + 0x150000 on x64, 0x30000 + 0x1000000 on x86, and an overlap of 0x4000). It tries each page there,
    #: which takes it most of the time of a small image, and skips the range unless a raw image covers it.
    first: int


X64 = Mode("x64", "<Q", (39, 30, 21, 12), (9, 9, 9, 9), 0x1AD000, 0x1ED, 0x2B0000)
PAE = Mode("x86 PAE", "<Q", (30, 21, 12), (2, 9, 9), 0x185000, 3, 0x1040000)
X86 = Mode("x86", "<I", (22, 12), (10, 10), 0x185000, 0x300, 0x1040000)


class NotMappedError(ApcAuditError):
    """An access to memory that is not mapped."""


class AddressSpace:
    """Virtual memory, backed by frames handed out in order; page tables are made when it is written out.

    One set of page tables serves all processes: user pages of different processes must not overlap.
    """

    def __init__(self, mode: Mode) -> None:
        self.mode = mode
        self.physical = bytearray()
        #: pages at physical addresses of their own, which nothing maps: address to content.
        self.fixed: dict[int, bytes] = {}
        self.holes: set[int] = set()
        self._starts: list[int] = []
        self._regions: list[tuple[int, int, int]] = []
        #: the region found last: the next access is mostly to the same one.
        self._last = (0, 0, 0)
        self._mask = (1 << 64) - 1 if mode is X64 else (1 << 32) - 1

    def map(self, address: int, size: int) -> None:
        """Map the zeroed pages that [address, address+size) touches, where they are not mapped yet."""
        page = address & self._mask & ~(PAGE - 1)
        end = ((address & self._mask) + size + PAGE - 1) & ~(PAGE - 1)
        while page < end:
            region = self._find(page)
            if region is not None:
                page = region[1]
                continue
            following = bisect_right(self._starts, page)
            stop = min(self._starts[following], end) if following < len(self._starts) else end
            self._add(page, stop, len(self.physical))
            self.physical.extend(bytes(stop - page))
            page = stop

    def alias(self, address: int, existing: int) -> None:
        """Map one page a second time, at another address."""
        physical = self.physical_offset(existing)
        self._add(address & self._mask, (address & self._mask) + PAGE, physical & ~(PAGE - 1))

    def _add(self, start: int, stop: int, physical: int) -> None:
        at = bisect_right(self._starts, start)
        if (
            at
            and self._regions[at - 1][1] == start
            and self._regions[at - 1][2] + start - self._starts[at - 1] == physical
        ):
            self._regions[at - 1] = self._last = (self._starts[at - 1], stop, self._regions[at - 1][2])
            return
        self._starts.insert(at, start)
        self._regions.insert(at, (start, stop, physical))

    def _find(self, address: int) -> tuple[int, int, int] | None:
        if self._last[0] <= address < self._last[1]:
            return self._last
        at = bisect_right(self._starts, address) - 1
        if at >= 0 and address < self._regions[at][1]:
            self._last = self._regions[at]
            return self._last
        return None

    def physical_offset(self, address: int, size: int = 1) -> int:
        """Give the offset of mapped memory in `physical`; [address, address+size) must be contiguous there."""
        address &= self._mask
        region = self._find(address)
        if region is None or address + size > region[1]:
            raise NotMappedError(f"{address:#x} (+{size:#x}) is not mapped")
        return region[2] + address - region[0]

    def _piece(self, address: int, size: int) -> tuple[int, int]:
        """Give the offset of mapped memory in `physical`, and how many of `size` bytes lie there in one piece."""
        address &= self._mask
        region = self._find(address)
        if region is None:
            raise NotMappedError(f"{address:#x} (+{size:#x}) is not mapped")
        return region[2] + address - region[0], min(size, region[1] - address)

    def is_mapped(self, address: int) -> bool:
        """Tell whether the address is mapped and its page not taken out."""
        address &= self._mask
        return self._find(address) is not None and address & ~(PAGE - 1) not in self.holes

    def physical_address(self, address: int) -> int:
        """Translate a mapped virtual address."""
        return self.physical_offset(address) + self.mode.first

    def read(self, address: int, size: int) -> bytes:
        """Read virtual memory; pages may lie in different regions."""
        parts = []
        while size:
            at, count = self._piece(address, size)
            parts.append(self.physical[at : at + count])
            address, size = address + count, size - count
        return b"".join(parts)

    def write(self, address: int, data: bytes) -> None:
        """Write virtual memory; pages may lie in different regions."""
        start, end, physical = self._last
        offset = (address & self._mask) - start
        if 0 <= offset <= end - start - len(data):
            # A machine is a million writes of members, nearly all of them into the region of the one before.
            self.physical[physical + offset : physical + offset + len(data)] = data
            return
        done = 0
        while done < len(data):
            at, count = self._piece(address + done, len(data) - done)
            self.physical[at : at + count] = data[done : done + count] if count < len(data) else data
            done += count

    def unmap(self, address: int) -> None:
        """Take the page out of the page tables; its content stays in physical memory."""
        self.physical_offset(address)
        self.holes.add(address & self._mask & ~(PAGE - 1))

    def tables(self) -> dict[int, bytes]:
        """Make the page tables: physical address to content, the top table's frames included."""
        return _Tables(self.mode, self.mode.first + len(self.physical)).build(self._mapped_pages())

    def _mapped_pages(self) -> Iterable[tuple[int, int]]:
        for start, stop, physical in self._regions:
            base = physical + self.mode.first
            for page in range(start, stop, PAGE):
                if page not in self.holes:
                    yield page, base + page - start


class _Tables:
    """Page tables in the making: frames for lower tables are taken in the order of first use."""

    def __init__(self, mode: Mode, next_frame: int) -> None:
        self.mode = mode
        self.entry = struct.Struct(mode.entry)
        self.next_frame = next_frame
        self.content: dict[int, bytearray] = {}

    def build(self, pages: Iterable[tuple[int, int]]) -> dict[int, bytes]:
        mode = self.mode
        self.content[mode.root] = bytearray(PAGE)
        if mode is PAE:
            self._pae_directories()
        else:
            self._set(mode.root, mode.self_index, mode.root | _VALID)
        last_shift = mode.shifts[-1]
        table, reach = 0, -1
        for virtual, physical in pages:
            if virtual >> mode.shifts[-2] != reach:
                reach = virtual >> mode.shifts[-2]
                table = self._leaf_table(virtual)
            index = (virtual >> last_shift) & ((1 << mode.bits[-1]) - 1)
            self._set(table, index, physical | self._flags(virtual))
        return {address: bytes(data) for address, data in sorted(self.content.items())}

    def _flags(self, virtual: int) -> int:
        """Give the flags of the entries, at any level, on the way to an address."""
        return _VALID_USER if virtual < (1 << 47 if self.mode is X64 else 0x80000000) else _VALID

    def _pae_directories(self) -> None:
        """Lay out PAE's four page directories behind the root; the last one's first entries map all four."""
        root = self.mode.root
        directories = [root + PAGE * (index + 1) for index in range(4)]
        for index, directory in enumerate(directories):
            self.content[directory] = bytearray(PAGE)
            self._set(root, index, directory | 1)
        for index, directory in enumerate(directories):
            self._set(directories[3], index, directory | _VALID)

    def _leaf_table(self, virtual: int) -> int:
        table = self.mode.root
        for shift, bits in zip(self.mode.shifts[:-1], self.mode.bits[:-1], strict=True):
            index = (virtual >> shift) & ((1 << bits) - 1)
            (value,) = self.entry.unpack_from(self.content[table], index * self.entry.size)
            if not value & 1:
                value = self.next_frame | self._flags(virtual)
                self.content[self.next_frame] = bytearray(PAGE)
                self.next_frame += PAGE
                self._set(table, index, value)
            table = value & 0x000FFFFFFFFFF000
        return table

    def _set(self, table: int, index: int, value: int) -> None:
        self.entry.pack_into(self.content[table], index * self.entry.size, value)
