"""The image as bytes at virtual addresses; the only module that reads, and where a bad address ends."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator
from struct import Struct
from typing import Any, NamedTuple

from volatility3.framework import exceptions, interfaces

PAGE = 0x1000

CHUNK = 0x10000
CHUNKS_KEPT = 64
"""Physical memory is read in chunks of so many bytes, of which so many are kept: vol's layers take longer to find a
byte than to read four pages, and what belongs together (threads in the pool, entries of a list) lies close."""

TABLES_KEPT = 1 << 14
PAGES_KEPT = 1 << 18
"""How many page tables, and translations that vol was asked for, are kept: page tables that share their lower levels
map more of them than there is memory."""

_PAGE_MASK = PAGE - 1
_CHUNK_MASK = CHUNK - 1
_LARGE_PAGE = 1 << 7  # the PS bit of a directory entry (Intel SDM volume 3, 4.3 to 4.5)
_PAT_OF_LARGE_PAGE = 1 << 12
_NOT_MAPPED = -1


class Paging(NamedTuple):
    """The page tables: physical address of the top one, index bits a level, bytes of an entry, mask of a frame."""

    top: int
    index_bits: tuple[int, ...]
    entry_size: int
    frame_mask: int


class Memory:
    """Reads kernel memory through an Intel layer of vol, remembering the page tables it has walked.

    Addresses are full virtual addresses as a debugger prints them; one that is not canonical is
    unreadable, as it is to the processor. Nothing here raises for a bad address.
    """

    def __init__(self, context: interfaces.context.ContextInterface, layer_name: str) -> None:
        layer: Any = context.layers[layer_name]
        self.layer_name = layer_name
        self.bits: int = layer.bits_per_register
        self.pointer_size = self.bits // 8
        self._layer = layer
        self._mask: int = layer.address_mask
        self._context = context
        # What a large page or a page not present needs (swap, transition) is asked of vol, page by page.
        self._base: Any = context.layers[layer.config["memory_layer"]]
        self._levels = [(bits, large) for _, bits, large in layer.structure]
        self._entry = Struct("<I" if self._levels[-1][0] == 10 else "<Q")
        self._top: int = layer.config["page_map_offset"]
        # Intel32e of vol masks page frame numbers to 45 bits, since Windows keeps flags above them.
        self._frame_mask: int = ((1 << layer._maxphyaddr) - 1) & ~_PAGE_MASK
        self._leaf_shift = 12 + self._levels[-1][0]
        self._leaf_index = (1 << self._levels[-1][0]) - 1
        self._leaves: dict[int, array[int] | int] = {}
        self._other_pages: dict[int, int] = {}
        self._chunks: dict[int, bytes] = {}
        self._entry_code = "I" if self._entry.size == 4 else "Q"

    @property
    def partial(self) -> bool:
        """Whether the image was made to hold only parts of memory: it is a minidump, whose layer says so."""
        return hasattr(self._base, "dumped_threads")

    @property
    def physical_layer(self) -> Any:
        """The layer of vol's that physical addresses belong to."""
        return self._base

    @property
    def paging(self) -> Paging:
        """What a walk over the page tables themselves needs."""
        return Paging(self._top, tuple(bits for bits, _ in self._levels), self._entry.size, self._frame_mask)

    def is_canonical(self, address: int) -> bool:
        """Tell whether the processor would accept a virtual address."""
        if self.bits == 32:
            return 0 <= address < 1 << 32
        return address >> 47 in (0, 0x1FFFF)

    def physical(self, address: int) -> int | None:
        """Translate a virtual address to one of the physical layer, None where nothing is mapped."""
        leaf = self._leaves.get(address >> self._leaf_shift)
        if leaf is None:
            # Only tables of canonical addresses are remembered.
            if not self.is_canonical(address):
                return None
            leaf = self._walk(address)
        if isinstance(leaf, int):
            page = self._ask(address)
        else:
            entry = leaf[(address >> 12) & self._leaf_index]
            page = entry & self._frame_mask if entry & 1 else self._ask(address)
        return None if page == _NOT_MAPPED else page | (address & _PAGE_MASK)

    def read(self, address: int, length: int) -> bytes | None:
        """Read bytes at a virtual address, None unless all of them can be read."""
        if (address & _PAGE_MASK) + length > PAGE:
            return self._read_pages(address, length)
        leaf = self._leaves.get(address >> self._leaf_shift)
        if isinstance(leaf, array):
            # What a walk over threads and lists does all the time, without a call: the page's table and bytes are kept.
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
        in_page = PAGE - (address & _PAGE_MASK)
        # Pages that lie side by side in the physical layer are read at once.
        pieces: list[bytes] = []
        run_start, run_length = start, in_page
        left = length - in_page
        at = address + in_page
        while left:
            step = PAGE if left >= PAGE else left
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
        """Read what can be read, zeros for the rest.

        Returns:
            The bytes, and the ranges [start, end) of them, in bytes from the start, that could not be read.
        """
        data = self.read(address, length)
        if data is not None:
            return data, ()
        pieces = bytearray(length)
        holes: list[tuple[int, int]] = []
        done = 0
        while done < length:
            step = min(PAGE - ((address + done) & _PAGE_MASK), length - done)
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
        """Yield what can be read within one page: (offset from the address, bytes), in their order."""
        start = self.physical(address)
        if start is None:
            return
        data = self.read_physical(start, length)
        if data is not None:
            yield 0, data
            return
        # Of a page that is there in part, a minidump's layer tells which parts; other layers hold whole pages, except
        # where the file ends. Trying every byte would cost thousands of reads for each page beyond the end.
        known = getattr(self._base, "known_runs", None)
        stop = min(start + length, self._base.maximum_address + 1)
        runs: Iterable[tuple[int, int]] = known(start, start + length) if known is not None else ((start, stop),)
        for begin, end in runs:
            piece = self.read_physical(begin, end - begin) if begin < end else None
            if piece is not None:
                yield begin - start, piece

    def read_physical(self, address: int, length: int) -> bytes | None:
        """Read bytes of the physical layer, None unless all of them can be read."""
        offset = address & _CHUNK_MASK
        if offset + length <= CHUNK:
            chunk = self._chunks.get(address - offset)
            if chunk is None:
                chunk = self._load(address - offset)
            if chunk:
                return chunk[offset : offset + length]
        return self._read_exactly(address, length)

    def _load(self, start: int) -> bytes:
        """Read a chunk and remember it; one that cannot be read whole is remembered as empty."""
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
        """Read a pointer at a virtual address."""
        data = self.read(address, self.pointer_size)
        return None if data is None else int.from_bytes(data, "little")

    def links(self, address: int) -> tuple[int, int] | None:
        """Read a LIST_ENTRY at a virtual address as (Flink, Blink)."""
        data = self.read(address, 2 * self.pointer_size)
        if data is None:
            return None
        half = self.pointer_size
        return int.from_bytes(data[:half], "little"), int.from_bytes(data[half:], "little")

    def _walk(self, address: int) -> array[int] | int:
        """Find the page table that maps an address; a number where there is none and vol must be asked."""
        table = self._top
        shift = sum(bits for bits, _ in self._levels) + 12
        leaf: array[int] | int = 0
        for depth, (bits, _) in enumerate(self._levels):
            shift -= bits
            index = (address >> shift) & ((1 << bits) - 1)
            if depth == len(self._levels) - 1:
                page = self.read_physical(table, PAGE)
                # Vol takes a table of identical entries for unused, and so do we.
                if page is not None and page != page[: self._entry.size] * (PAGE // self._entry.size):
                    leaf = array(self._entry_code, page)
                    if sys.byteorder == "big":
                        leaf.byteswap()
                break
            data = self.read_physical(table + index * self._entry.size, self._entry.size)
            entry = 0 if data is None else self._entry.unpack(data)[0]
            if not entry & 1 or entry & _LARGE_PAGE:
                break
            table = entry & self._frame_mask
        if len(self._leaves) >= TABLES_KEPT:
            self._leaves.clear()
        self._leaves[address >> self._leaf_shift] = leaf
        return leaf

    def _ask(self, address: int) -> int:
        """Translate one page through vol, which knows large pages, transition and swap."""
        page = address & self._mask & ~_PAGE_MASK
        known = self._other_pages.get(page)
        if known is None:
            known = _NOT_MAPPED
            try:
                mapped, layer_name = self._layer.translate(page)
                if layer_name == self._base.name:
                    known = mapped
            except exceptions.InvalidAddressException:
                pass
            if len(self._other_pages) >= PAGES_KEPT:
                self._other_pages.clear()
            self._other_pages[page] = known
        return known


def _add_hole(holes: list[tuple[int, int]], start: int, end: int) -> None:
    """Add a range [start, end), joined to the one before where they meet."""
    if holes and holes[-1][1] == start:
        holes[-1] = (holes[-1][0], end)
    else:
        holes.append((start, end))
