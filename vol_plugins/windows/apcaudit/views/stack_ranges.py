"""Whose kernel stack an address lies on, and whether a pool block holds it."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator

from ..drivers.loaded import Drivers
from ..layout import Decoder, is_number
from ..memory import PAGE, Memory
from ..model import Thread
from ..symbols import KernelSymbols

STACK_BOUND = 1 << 20
"""The largest kernel stack that is believed, in bytes; x64 gives up to 72 KiB, callouts a few of them."""

PAGES_KEPT = 4096
"""Of how many pages it is remembered where pool blocks lie in them."""


class StackRanges:
    """Answers for one image; the stacks of all threads are read once, and only when an answer needs them."""

    def __init__(
        self, memory: Memory, symbols: KernelSymbols, drivers: Drivers, threads: Callable[[], Iterable[Thread]]
    ) -> None:
        self._memory = memory
        self._drivers = drivers
        self._threads = threads
        self._ranges: tuple[array[int], array[int], array[int]] | None = None
        members = [symbols.member("_POOL_HEADER", name) for name in ("BlockSize", "PoolType", "PoolTag")]
        self._header = symbols.size_of("_POOL_HEADER") or 2 * memory.pointer_size
        fits = all(each is not None and is_number(each) and each.offset + each.size <= self._header for each in members)
        self._blocks: dict[int, tuple[tuple[int, int], ...]] = {}
        self._decode = Decoder(members, self._header) if fits and self._header <= PAGE else None

    def holder(self, address: int, thread: Thread) -> int | None:
        """Return the _ETHREAD on whose kernel stack a virtual address lies, None when it is on none.

        Args:
            address: of a KAPC.
            thread: the thread that it is queued to, whose own stack is asked first.
        """
        limit, base = thread.members.stack_limit, thread.members.stack_base
        if limit and base and limit <= address < base <= limit + STACK_BOUND:
            return thread.address
        if self._drivers.at(address) is not None or self.in_pool(address):
            return None
        if self._ranges is None:
            self._ranges = self._read()
        limits, bases, threads = self._ranges
        index = bisect_right(limits, address) - 1
        return threads[index] if index >= 0 and address < bases[index] else None

    def in_pool(self, address: int) -> bool:
        """Tell whether a pool header before an address, on its page, is of a block that reaches beyond it."""
        offset = address % PAGE
        blocks = self._blocks.get(address - offset)
        if blocks is None:
            if len(self._blocks) >= PAGES_KEPT:
                self._blocks.clear()
            blocks = self._blocks[address - offset] = tuple(self._blocks_of(address - offset))
        return any(start <= offset < end for start, end in blocks)

    def _blocks_of(self, page: int) -> Iterator[tuple[int, int]]:
        """Yield where in a page lie the blocks of what may be pool headers, as offsets in bytes."""
        data = self._memory.read(page, PAGE)
        if data is None or self._decode is None:
            return
        for at in range(0, PAGE - self._header + 1, self._header):
            size, kind, tag = self._decode(data, at)
            start, end = at + self._header, at + (size or 0) * self._header
            # Type 0 is a free block; no block leaves its page.
            if kind and tag and start < end <= PAGE and _is_tag(tag):
                yield start, end

    def _read(self) -> tuple[array[int], array[int], array[int]]:
        ranges = sorted(self._known())
        columns = zip(*ranges, strict=True) if ranges else ((), (), ())
        limits, bases, threads = (array("Q", column) for column in columns)
        return limits, bases, threads

    def _known(self) -> Iterator[tuple[int, int, int]]:
        for thread in self._threads():
            limit, base = thread.members.stack_limit, thread.members.stack_base
            if limit and base and limit < base <= limit + STACK_BOUND:
                yield limit, base, thread.address


def _is_tag(tag: int) -> bool:
    """Tell whether a pool tag is four printable characters, the last one's top bit (a protected block's) aside."""
    return all(0x20 <= letter < 0x7F for letter in (tag & 0x7FFFFFFF).to_bytes(4, "little"))
