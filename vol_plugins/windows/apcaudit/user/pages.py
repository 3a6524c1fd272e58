"""One process's page tables: where a user page is, what may be done with it, and whose it is.

Vol's process layers translate addresses, but keep neither protections nor what invalid entries say, so the tables are
walked here. Formats of valid entries: Intel SDM volume 3, chapter 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ..formats.layout import Member
from ..image import Memory
from ..image.symbols import KernelSymbols
from ..windows import PAGE_SIZE

TABLES_KEPT = 64
"""How many page tables of a process are kept; APCs of one process have a handful of targets."""

_PRESENT, _WRITABLE, _LARGE = 1, 2, 1 << 7
_NO_EXECUTE = 1 << 63

# MM_NOACCESS to MM_EXECUTE_WRITECOPY, the lowest three bits of a VAD's and an invalid PTE's Protection; the two above
# are caching and guard pages, both together no access (ReactOS, mm/ARM3/miarm.h).
_PROTECTIONS = ("", "r", "x", "rx", "rw", "rc", "rwx", "rcx")
_DECOMMITTED = 0x10  # MM_DECOMMIT: guard and no access


def protection_text(value: int | None) -> str | None:
    """Return the letters of a VAD's or an invalid PTE's Protection, None for none."""
    if value is None or not 0 <= value < 0x20:
        return None
    return "" if value & 0x18 == 0x18 and not value & 7 else _PROTECTIONS[value & 7]


class Page(str, Enum):
    """Where a page is."""

    VALID = "valid"
    TRANSITION = "in transition"
    PAGED_OUT = "paged out"
    SHARED = "not in the working set"
    UNTOUCHED = "not yet touched"
    UNREADABLE = "its page tables cannot be read"


@dataclass(frozen=True, slots=True)
class Pte:
    """What a page table entry says: where the page is, its physical address if it is in memory, and its protection.

    `no_execute` is what the hardware enforces, None where it enforces nothing or the page is not valid.
    """

    page: Page
    physical: int | None = None
    protection: str | None = None
    no_execute: bool | None = None


_UNREADABLE, _UNTOUCHED = Pte(Page.UNREADABLE), Pte(Page.UNTOUCHED)


@dataclass(frozen=True, slots=True)
class PteLayout:
    """Members of _MMPTE; None where the symbols lack them. What is valid is as the processor has it."""

    write: Member | None
    copy_on_write: Member | None
    transition: Member | None
    prototype: Member | None
    protection: Member | None
    page_file: Member | None
    prototype_protection: Member | None


def read_pte_layout(symbols: KernelSymbols) -> PteLayout:
    """Find the members of page table entries that Windows keeps in bits of its own."""
    find = symbols.member
    return PteLayout(
        find("_MMPTE", "u.Hard.Write"),
        find("_MMPTE", "u.Hard.CopyOnWrite"),
        find("_MMPTE", "u.Trans.Transition"),
        find("_MMPTE", "u.Trans.Prototype"),
        find("_MMPTE", "u.Soft.Protection"),
        find("_MMPTE", "u.Soft.PageFileHigh"),
        find("_MMPTE", "u.Proto.Protection"),
    )


def _bits(value: int, member: Member | None) -> int | None:
    """Extract a bit field from an entry; None where the member is unknown."""
    if member is None or member.offset:
        return None
    return value >> member.shift & ((1 << member.bits) - 1) if member.bits is not None else value


class PageTables:
    """Reads the page tables that begin at a physical address."""

    def __init__(self, memory: Memory, layout: PteLayout, top: int) -> None:
        self._memory = memory
        self._layout = layout
        paging = memory.paging
        self._frame_mask = paging.frame_mask
        self._size = paging.entry_size
        self._index_bits = paging.index_bits
        self._has_no_execute = paging.entry_size == 8
        # PAE's top table has 32 bytes; the low bits of the others' addresses are flags, and an address space's number.
        aligned = 0x1F if len(paging.index_bits) == 3 else PAGE_SIZE - 1
        self._top = top & (self._frame_mask | PAGE_SIZE - 1) & ~aligned
        self._tables: dict[int, tuple[bytes | None, bool] | Pte] = {}

    def find(self, address: int) -> Pte:
        """Return what is said of the page of a user address."""
        bits_below = self._index_bits[-1] + 12
        found = self._tables.get(address >> bits_below)
        if found is None:
            found = self._walk(address)
            if len(self._tables) >= TABLES_KEPT:
                self._tables.clear()
            self._tables[address >> bits_below] = found
        if isinstance(found, Pte):
            if found.physical is None:
                return found
            offset = address & ((1 << bits_below) - 1) & ~(PAGE_SIZE - 1)
            return Pte(found.page, found.physical + offset, found.protection, found.no_execute)
        table, no_execute = found
        if table is None:
            return _UNREADABLE
        at = (address >> 12 & ((1 << self._index_bits[-1]) - 1)) * self._size
        return self.decode(int.from_bytes(table[at : at + self._size], "little"), no_execute=no_execute)

    def _walk(self, address: int) -> tuple[bytes | None, bool] | Pte:
        """Return the last table on the way to an address and whether those above forbid execution, or a large page."""
        table, no_execute = self._top, False
        shift = sum(self._index_bits) + 12
        for depth, width in enumerate(self._index_bits[:-1]):
            shift -= width
            at = table + (address >> shift & ((1 << width) - 1)) * self._size
            data = self._memory.read_physical(at, self._size)
            if data is None:
                return _UNREADABLE
            entry = int.from_bytes(data, "little")
            if not entry:
                return _UNTOUCHED
            if not entry & _PRESENT:
                # A page table can be in transition like any page; what it says is then still there.
                physical = self.decode(entry).physical
                if physical is None:
                    return _UNREADABLE
                table = physical
                continue
            if depth and self._has_no_execute:
                # Not of the top table: with KVA shadowing the kernel's own tables forbid it there for all of user
                # space (MSRC, "KVA Shadow: Mitigating Meltdown on Windows").
                no_execute = no_execute or bool(entry & _NO_EXECUTE)
            if entry & _LARGE and shift < 39 and (depth or len(self._index_bits) == 2):
                return self._valid(entry, entry & self._frame_mask & -(1 << shift), no_execute=no_execute)
            table = entry & self._frame_mask
        return self._memory.read_physical(table, self._size << self._index_bits[-1]), no_execute

    def decode(self, entry: int, *, no_execute: bool = False) -> Pte:
        """Return what an entry of a page, or a prototype PTE, says."""
        if entry & _PRESENT:
            return self._valid(entry, entry & self._frame_mask, no_execute=no_execute)
        if not entry:
            return _UNTOUCHED
        layout = self._layout
        prototype, transition = _bits(entry, layout.prototype), _bits(entry, layout.transition)
        if prototype is None or transition is None:
            return _UNREADABLE
        if prototype:
            protection = protection_text(_bits(entry, layout.prototype_protection))
            return Pte(Page.SHARED, protection=protection or None)
        value = _bits(entry, layout.protection)
        protection = protection_text(value)
        if transition:
            return Pte(Page.TRANSITION, entry & self._frame_mask, protection)
        if value == _DECOMMITTED:
            return Pte(Page.UNTOUCHED, protection="")
        return Pte(Page.PAGED_OUT if _bits(entry, layout.page_file) else Page.UNTOUCHED, protection=protection)

    def _valid(self, entry: int, physical: int, *, no_execute: bool) -> Pte:
        forbidden = (no_execute or bool(entry & _NO_EXECUTE)) if self._has_no_execute else None
        # A page that was not written to yet is read-only for the processor; Windows notes that it may be.
        written = entry & _WRITABLE or _bits(entry, self._layout.write)
        letters = "c" if _bits(entry, self._layout.copy_on_write) else "w" if written else ""
        return Pte(Page.VALID, physical, f"r{letters}" + ("" if forbidden else "x"), forbidden)
