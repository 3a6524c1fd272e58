"""Reads the image at virtual and physical addresses. Every read goes through here; a bad address gives None."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator
from struct import Struct
from typing import Any, NamedTuple, Protocol, runtime_checkable

from volatility3.framework import exceptions, interfaces

from ..formats.crash_header import CrashHeader
from ..windows import PAGE_SIZE

CHUNK = 0x10000
CHUNKS_KEPT = 64
"""Physical memory is read in chunks of CHUNK bytes, and CHUNKS_KEPT of them are cached: vol's layers take longer to
locate a byte than to read four pages, and related data (threads in the pool, entries of a list) is often close."""

TABLES_KEPT = 1 << 14
PAGES_KEPT = 1 << 18
"""How many page tables, and translations by vol, are cached. Page tables that share their lower levels could map more
than fits in memory."""

_PAGE_MASK = PAGE_SIZE - 1
_CHUNK_MASK = CHUNK - 1
_LARGE_PAGE = 1 << 7  # the PS bit of a directory entry (Intel SDM volume 3, 4.3 to 4.5)
_NOT_MAPPED = -1

# In the place of a page table: all that it would map is unmapped, or what its absence means is for vol to say. Asking
# vol takes a hundred times as long, and forged modules span hundreds of megabytes of nothing.
_NO_TABLE, _ASK_VOL = -1, 0


class Paging(NamedTuple):
    """The paging mode: physical address of the top table, index bits per level, bytes per entry, mask of the frame."""

    top: int
    index_bits: tuple[int, ...]
    entry_size: int
    frame_mask: int


@runtime_checkable
class PartialLayer(Protocol):
    """What a physical layer tells that was made to hold parts of memory only, as a minidump's is.

    `dumped_threads` are the virtual addresses of the threads that the dump is about, `prcb_address` that of its
    processor's _KPRCB, `defects` a sentence on each defect of the file. `crash_stack` is the range [start, end) of the
    stack that its context is on, None where the dump has none.
    """

    crash_header: CrashHeader
    dumped_threads: tuple[int, ...]
    prcb_address: int | None
    defects: tuple[str, ...]
    crash_stack: tuple[int, int] | None

    def known_runs(self, start: int, end: int) -> Iterable[tuple[int, int]]:
        """Yield the ranges [start, end) of physical addresses within one that are known."""


class Memory:
    """Reads memory through vol's Intel layer and caches page tables and chunks of physical memory.

    Addresses are full virtual addresses as a debugger prints them. Non-canonical ones are unreadable, as for the
    processor. No method raises for a bad address.
    """

    def __init__(self, context: interfaces.context.ContextInterface, layer_name: str) -> None:
        layer: Any = context.layers[layer_name]
        self.layer_name = layer_name
        self.bits: int = layer.bits_per_register
        self.pointer_size = self.bits // 8
        self._layer = layer
        self._mask: int = layer.address_mask
        self._context = context
        # Large pages and pages that are not present (swap, transition) are translated by vol, page by page.
        self._base: Any = context.layers[layer.config["memory_layer"]]
        self._levels = [(bits, large) for _, bits, large in layer.structure]
        self._entry = Struct("<I" if self._levels[-1][0] == 10 else "<Q")
        self._top: int = layer.config["page_map_offset"]
        # vol's Intel32e masks page frame numbers to 45 bits, since Windows uses the bits above for flags.
        self._frame_mask: int = ((1 << layer._maxphyaddr) - 1) & ~_PAGE_MASK
        self._leaf_shift = 12 + self._levels[-1][0]
        self._leaf_index = (1 << self._levels[-1][0]) - 1
        self._leaves: dict[int, array[int] | int] = {}
        self._vol_pages: dict[int, int] = {}
        self._chunks: dict[int, bytes] = {}
        self._entry_code = "I" if self._entry.size == 4 else "Q"
        self.partial_layer = self._base if isinstance(self._base, PartialLayer) else None

    @property
    def partial(self) -> bool:
        """Whether the image contains only parts of memory by design, as a minidump does."""
        return self.partial_layer is not None

    @property
    def physical_layer(self) -> Any:
        """The layer of physical memory below vol's Intel layer."""
        return self._base

    @property
    def paging(self) -> Paging:
        """What is needed to walk the page tables themselves."""
        return Paging(self._top, tuple(bits for bits, _ in self._levels), self._entry.size, self._frame_mask)

    def is_canonical(self, address: int) -> bool:
        """Return whether a virtual address is canonical (48 bits on x64)."""
        if self.bits == 32:
            return 0 <= address < 1 << 32
        return address >> 47 in (0, 0x1FFFF)

    def physical(self, address: int) -> int | None:
        """Translate a virtual address to an address of the physical layer; None where nothing is mapped."""
        leaf = self._leaves.get(address >> self._leaf_shift)
        if leaf is None:
            # Only tables of canonical addresses are cached.
            if not self.is_canonical(address):
                return None
            leaf = self._walk(address)
        if isinstance(leaf, int):
            page = _NOT_MAPPED if leaf == _NO_TABLE else self._translate_page(address)
        else:
            entry = leaf[(address >> 12) & self._leaf_index]
            page = entry & self._frame_mask if entry & 1 else self._translate_page(address)
        return None if page == _NOT_MAPPED else page | (address & _PAGE_MASK)

    def read(self, address: int, length: int) -> bytes | None:
        """Read bytes at a virtual address; None unless all of them can be read."""
        if (address & _PAGE_MASK) + length > PAGE_SIZE:
            return self._read_pages(address, length)
        leaf = self._leaves.get(address >> self._leaf_shift)
        if isinstance(leaf, array):
            # The fast path of walks over threads and lists: page table and chunk are cached, no call is needed.
            entry = leaf[(address >> 12) & self._leaf_index]
            if entry & 1:
                start = entry & self._frame_mask | address & _PAGE_MASK
                offset = start & _CHUNK_MASK
                chunk = self._chunks.get(start - offset)
                return chunk[offset : offset + length] if chunk else self.read_physical(start, length)
        page = self.physical(address)
        return None if page is None else self.read_physical(page, length)

    def _read_pages(self, address: int, length: int) -> bytes | None:
        start = self.physical(address)
        if start is None:
            return None
        in_page = PAGE_SIZE - (address & _PAGE_MASK)
        # Pages that are contiguous in the physical layer are read at once.
        pieces: list[bytes] = []
        run_start, run_length = start, in_page
        left = length - in_page
        at = address + in_page
        while left:
            step = PAGE_SIZE if left >= PAGE_SIZE else left
            page = self.physical(at)
            if page is None:
                return None
            if page == run_start + run_length:
                run_length += step
            else:
                piece = self.read_physical(run_start, run_length)
                if piece is None:
                    return None
                pieces.append(piece)
                run_start, run_length = page, step
            at += step
            left -= step
        piece = self.read_physical(run_start, run_length)
        if piece is None:
            return None
        pieces.append(piece)
        return b"".join(pieces)

    def read_sparse(self, address: int, length: int) -> tuple[bytes, tuple[tuple[int, int], ...]]:
        """Read bytes at a virtual address, with zeros for those that cannot be read.

        Returns:
            The bytes, and the unreadable ranges [start, end) in bytes from the address.
        """
        data = self.read(address, length)
        if data is not None:
            return data, ()
        pieces = bytearray(length)
        holes: list[tuple[int, int]] = []
        done = 0
        while done < length:
            step = min(PAGE_SIZE - ((address + done) & _PAGE_MASK), length - done)
            end = done
            for start, piece in self._known_parts(address + done, step):
                if done + start > end:
                    _add_hole(holes, end, done + start)
                end = done + start + len(piece)
                pieces[done + start : end] = piece
            done += step
            if end < done:
                _add_hole(holes, end, done)
        return bytes(pieces), tuple(holes)

    def _known_parts(self, address: int, length: int) -> Iterator[tuple[int, bytes]]:
        """Yield the readable parts of a range within one page, ascending: (offset from the address, bytes)."""
        start = self.physical(address)
        if start is None:
            return
        data = self.read_physical(start, length)
        if data is not None:
            yield 0, data
            return
        # A minidump's layer knows which parts of a page it has; other layers have whole pages except at the end of the
        # file. Trying every byte would cost thousands of reads for each page beyond the end.
        stop = min(start + length, self._base.maximum_address + 1)
        partial = self.partial_layer
        runs = partial.known_runs(start, start + length) if partial is not None else ((start, stop),)
        for begin, end in runs:
            piece = self.read_physical(begin, end - begin) if begin < end else None
            if piece is not None:
                yield begin - start, piece

    def read_physical(self, address: int, length: int) -> bytes | None:
        """Read bytes of the physical layer; None unless all of them can be read."""
        offset = address & _CHUNK_MASK
        if offset + length <= CHUNK:
            chunk = self._chunks.get(address - offset)
            if chunk is None:
                chunk = self._load(address - offset)
            if chunk:
                return chunk[offset : offset + length]
        return self._read_exactly(address, length)

    def _load(self, start: int) -> bytes:
        """Read and cache a chunk; one that cannot be read completely is cached as empty."""
        chunk = self._read_exactly(start, CHUNK) or b""
        if len(self._chunks) == CHUNKS_KEPT:
            del self._chunks[next(iter(self._chunks))]
        self._chunks[start] = chunk
        return chunk

    def _read_exactly(self, address: int, length: int) -> bytes | None:
        try:
            data: bytes = self._base.read(address, length)
        except exceptions.InvalidAddressException:
            return None
        return data

    def pointer(self, address: int) -> int | None:
        """Read a pointer at a virtual address; None where it cannot be read."""
        data = self.read(address, self.pointer_size)
        return None if data is None else int.from_bytes(data, "little")

    def links(self, address: int) -> tuple[int, int] | None:
        """Read the LIST_ENTRY at a virtual address as (Flink, Blink); None where it cannot be read."""
        data = self.read(address, 2 * self.pointer_size)
        if data is None:
            return None
        half = self.pointer_size
        return int.from_bytes(data[:half], "little"), int.from_bytes(data[half:], "little")

    def _walk(self, address: int) -> array[int] | int:
        """Return and cache the page table that maps an address; else _NO_TABLE, or _ASK_VOL where vol may know more."""
        table = self._top
        shift = sum(bits for bits, _ in self._levels) + 12
        leaf: array[int] | int = _ASK_VOL
        for depth, (bits, _) in enumerate(self._levels):
            shift -= bits
            index = (address >> shift) & ((1 << bits) - 1)
            if depth == len(self._levels) - 1:
                page = self.read_physical(table, PAGE_SIZE)
                # vol treats a table of identical entries as unused, and so does this.
                if page is not None and page == page[: self._entry.size] * (PAGE_SIZE // self._entry.size):
                    leaf = _NO_TABLE
                elif page is not None:
                    leaf = array(self._entry_code, page)
                    if sys.byteorder == "big":
                        leaf.byteswap()
                break
            data = self.read_physical(table + index * self._entry.size, self._entry.size)
            entry = None if data is None else self._entry.unpack(data)[0]
            if entry == 0:
                leaf = _NO_TABLE
            if not entry or not entry & 1 or entry & _LARGE_PAGE:
                break
            table = entry & self._frame_mask
        if len(self._leaves) >= TABLES_KEPT:
            self._leaves.clear()
        self._leaves[address >> self._leaf_shift] = leaf
        return leaf

    def _translate_page(self, address: int) -> int:
        """Translate one page with vol, which handles large pages, transition and swap."""
        page = address & self._mask & ~_PAGE_MASK
        known = self._vol_pages.get(page)
        if known is None:
            known = _NOT_MAPPED
            try:
                mapped, layer_name = self._layer.translate(page)
                if layer_name == self._base.name:
                    known = mapped
            except exceptions.InvalidAddressException:
                pass
            if len(self._vol_pages) >= PAGES_KEPT:
                self._vol_pages.clear()
            self._vol_pages[page] = known
        return known


def _add_hole(holes: list[tuple[int, int]], start: int, end: int) -> None:
    """Append a range [start, end); merge it with the last one if they are adjacent."""
    if holes and holes[-1][1] == start:
        holes[-1] = (holes[-1][0], end)
    else:
        holes.append((start, end))
