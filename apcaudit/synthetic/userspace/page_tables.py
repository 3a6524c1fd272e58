"""The page tables of one process: the user half its own, the kernel half that of all.

Sources: Intel SDM volume 3, chapter 4 (entry formats). What Windows keeps in the bits that the processor leaves to it
is written by the member names of its _MMPTE types.
"""

from __future__ import annotations

import struct

from apcaudit.synthetic.kernels import Kernel
from apcaudit.synthetic.pages import PAE, PAGE, X64, AddressSpace, Mode, NotMappedError
from apcaudit.synthetic.user import PROTECTIONS

#: Bits of valid entries: present, writable, user-accessible, accessed, dirty, large page, not executable.
PRESENT, WRITABLE, USER, ACCESSED, DIRTY, LARGE, NO_EXECUTE = 1, 2, 4, 0x20, 0x40, 0x80, 1 << 63
_TABLE = PRESENT | WRITABLE | USER | ACCESSED | DIRTY
_FRAME = 0x000FFFFFFFFFF000

#: How many entries of the top table, or of PAE's directories, are user space's.
_USER_ENTRIES = {"x64": 0x100, "x86 PAE": 2, "x86": 0x200}


class Entries:
    """Makes page table entries of one kernel by the members of its _MMPTE."""

    def __init__(self, kernel: Kernel, mode: Mode) -> None:
        self._layout = kernel.layout
        self.size = struct.calcsize(mode.entry)

    def _member(self, path: str, value: int) -> int:
        """Give an entry with one member set; 0 where this kernel has no such member."""
        if not self._layout.has("_MMPTE", path):
            return 0
        field = self._layout.field("_MMPTE", path)
        bits = field.bits or 8 * field.size
        return (value & ((1 << bits) - 1)) << (field.bit if field.bits else 0)

    def _members(self, kind: str, **values: int) -> int:
        entry = 0
        for name, value in values.items():
            entry |= self._member(f"u.{kind}.{name}", value)
        return entry

    def valid(self, physical: int, protection: str) -> int:
        """Make the entry of a page in the working set."""
        entry = physical | PRESENT | USER | ACCESSED
        if protection.endswith("READWRITE"):
            entry |= WRITABLE | DIRTY | self._members("Hard", Write=1)
        elif protection.endswith("WRITECOPY"):
            entry |= self._members("Hard", CopyOnWrite=1)
        if "EXECUTE" not in protection and self.size == 8:
            entry |= NO_EXECUTE
        return entry

    def transition(self, physical: int, protection: str) -> int:
        """Make the entry of a page that is on its way out of memory."""
        return self._members(
            "Trans", PageFrameNumber=physical // PAGE, Transition=1, Protection=PROTECTIONS.index(protection)
        )

    def software(self, protection: str, page_file: int = 0) -> int:
        """Make the entry of a page in the page file, or with no place there of one that is made when it is used."""
        return self._members("Soft", PageFileHigh=page_file, Protection=PROTECTIONS.index(protection))

    def lookup(self, protection: str) -> int:
        """Make the entry that leads to the VAD, which has the prototype PTE: all bits of PageFileHigh."""
        return self._members("Soft", PageFileHigh=-1, Prototype=1, Protection=PROTECTIONS.index(protection))

    def subsection(self, address: int, protection: str) -> int:
        """Make the prototype PTE of a page that is in its file only, as the subsection knows."""
        values = {"Protection": PROTECTIONS.index(protection), "Prototype": 1}
        if self._layout.has("_MMPTE", "u.Subsect.SubsectionAddress"):
            return self._members("Subsect", SubsectionAddress=address, **values)
        low = self._layout.field("_MMPTE", "u.Subsect.SubsectionAddressLow").bits
        distance = (address & 0x7FFFFFF) >> 3
        return self._members("Subsect", SubsectionAddressLow=distance, SubsectionAddressHigh=distance >> low, **values)

    def prototype(self, address: int, protection: str) -> int:
        """Make the entry that leads to a prototype PTE in paged pool."""
        if self._layout.has("_MMPTE", "u.Proto.ProtoAddress"):
            values = {"ProtoAddress": address, "Protection": PROTECTIONS.index(protection)}
        else:
            # 32-bit entries: the pool's offset of the PTE, in words, in two parts.
            low = self._layout.field("_MMPTE", "u.Proto.ProtoAddressLow").bits
            distance = (address & 0x3FFFFFFF) >> 2
            values = {"ProtoAddressLow": distance, "ProtoAddressHigh": distance >> low}
        return self._members("Proto", Prototype=1, **values)


class UserPages(AddressSpace):
    """User space of one process. Frames, those of the page tables too, are taken from the kernel's memory."""

    def __init__(self, kernel: Kernel, shared: AddressSpace) -> None:
        super().__init__(shared.mode)
        self.physical = shared.physical
        self.entries = Entries(kernel, shared.mode)
        self._entry = struct.Struct(shared.mode.entry)
        self._frames: dict[int, int] = {}
        self._tables: dict[tuple[int, int], int] = {}
        #: Physical address of the top table, which goes to _KPROCESS.DirectoryTableBase.
        self.root = self.take_frames(1)
        self._directories = [self.take_frames(1) for _ in range(4)] if self.mode is PAE else []
        for index, directory in enumerate(self._directories):
            self._write_entry(self.root, index, directory | PRESENT)

    def take_frames(self, count: int) -> int:
        """Take zeroed frames that lie side by side; give the first one's physical address."""
        at = len(self.physical)
        self.physical.extend(bytes(count * PAGE))
        return self.mode.first + at

    def map(self, address: int, size: int) -> None:
        """Map private, writable pages where nothing is mapped yet."""
        first = address & ~(PAGE - 1)
        wanted = [page for page in range(first, address + size, PAGE) if page not in self._frames]
        frames = self.take_frames(len(wanted))
        for position, page in enumerate(wanted):
            self.map_frame(page, frames + position * PAGE, "READWRITE")

    def map_frame(self, address: int, physical: int, protection: str, state: str = "valid") -> None:
        """Map one page; of those not in the working set the content stays in its frame."""
        if state == "valid":
            entry = self.entries.valid(physical, protection)
        elif state == "transition":
            entry = self.entries.transition(physical, protection)
        else:
            entry = self.entries.software(protection, physical // PAGE if state == "paged-out" else 0)
        self.set_entry(address, entry)
        self._frames[address & ~(PAGE - 1)] = physical

    def set_entry(self, address: int, entry: int) -> None:
        """Write the page table entry of an address as it is."""
        self._write_entry(self._leaf_table(address), self._index(address, len(self.mode.shifts) - 1), entry)

    def entry(self, address: int) -> int:
        """Read the page table entry of an address."""
        return self._read_entry(self._leaf_table(address), self._index(address, len(self.mode.shifts) - 1))

    def set_table_entry(self, address: int, level: int, entry: int) -> None:
        """Write the entry above: of the table at a level, counted from the top, on the way to an address."""
        table = self.root
        for above in range(level):
            table = self._read_entry(table, self._index(address, above)) & _FRAME
        self._write_entry(table, self._index(address, level), entry)

    @property
    def large_size(self) -> int:
        """Size of a large page in bytes."""
        return 1 << self.mode.shifts[-2]

    def map_large(self, address: int, protection: str) -> None:
        """Map a large page at an address aligned as it is: an entry of the level above the page tables."""
        size = self.large_size
        if address % size:
            raise NotMappedError(f"{address:#x} is no address of a large page")
        self.take_frames(-(self.mode.first + len(self.physical)) % size // PAGE)
        physical = self.take_frames(size // PAGE)
        self._leaf_table(address)
        self.set_table_entry(
            address, len(self.mode.shifts) - 2, self.entries.valid(physical, protection) | DIRTY | LARGE
        )
        self._frames |= {address + at: physical + at for at in range(0, size, PAGE)}

    def physical_offset(self, address: int, size: int = 1) -> int:
        """Give the offset of mapped memory in `physical`; it must lie in one page."""
        at, count = self._piece(address, size)
        if count < size:
            raise NotMappedError(f"{address:#x} (+{size:#x}) is not mapped in one piece")
        return at

    def _piece(self, address: int, size: int) -> tuple[int, int]:
        frame = self._frames.get(address & ~(PAGE - 1))
        if frame is None:
            raise NotMappedError(f"{address:#x} (+{size:#x}) is not mapped")
        within = address & (PAGE - 1)
        return frame - self.mode.first + within, min(size, PAGE - within)

    def is_mapped(self, address: int) -> bool:
        """Tell whether the address has a frame."""
        return address & ~(PAGE - 1) in self._frames

    def physical_address(self, address: int) -> int:
        """Translate a mapped address."""
        return self.physical_offset(address) + self.mode.first

    def unmap(self, address: int) -> None:
        """Take the page out of the page tables; its content stays in its frame."""
        self.physical_offset(address)
        self.set_entry(address, 0)

    def share_kernel_half(self, tables: dict[int, bytes]) -> None:
        """Take over the kernel's entries of its finished page tables, and write the self-reference."""
        mode, size = self.mode, self._entry.size
        if mode is PAE:
            # The two upper directories are the kernel's, but for the entries that map this process's own.
            for number in (2, 3):
                self.write_frames(self._directories[number], tables[mode.root + PAGE * (number + 1)])
            for index, directory in enumerate(self._directories):
                self._write_entry(self._directories[3], index, directory | _TABLE & ~USER)
            return
        first = _USER_ENTRIES[mode.name] * size
        self.write_frames(self.root + first, tables[mode.root][first:])
        self._write_entry(self.root, mode.self_index, self.root | _TABLE & ~USER)

    def _index(self, address: int, level: int) -> int:
        return (address >> self.mode.shifts[level]) & ((1 << self.mode.bits[level]) - 1)

    def _leaf_table(self, address: int) -> int:
        key = len(self.mode.shifts) - 2, address >> self.mode.shifts[-2]
        found = self._tables.get(key)
        if found is not None:
            return found
        if address >> (47 if self.mode is X64 else 31):
            raise NotMappedError(f"{address:#x} is no user address")
        table = self.root
        for level in range(len(self.mode.shifts) - 1):
            index = self._index(address, level)
            entry = self._read_entry(table, index)
            if not entry & PRESENT:
                entry = self.take_frames(1) | _TABLE
                self._write_entry(table, index, entry)
            table = entry & _FRAME
        self._tables[key] = table
        return table

    def write_frames(self, physical: int, data: bytes) -> None:
        """Write to frames by physical address."""
        at = physical - self.mode.first
        self.physical[at : at + len(data)] = data

    def _write_entry(self, table: int, index: int, entry: int) -> None:
        self._entry.pack_into(self.physical, table - self.mode.first + index * self._entry.size, entry)

    def _read_entry(self, table: int, index: int) -> int:
        value: int = self._entry.unpack_from(self.physical, table - self.mode.first + index * self._entry.size)[0]
        return value
