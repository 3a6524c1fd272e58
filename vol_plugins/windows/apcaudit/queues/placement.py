"""In what memory KAPCs and routines lie: on a kernel stack, in pool, or in a region where neither belongs."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from .. import windows
from ..formats.layout import Decoder, is_number
from ..image.page_tables import Regions
from ..kernel import Kernel
from ..model import Backing, Code, FoundThread
from ..windows import PAGE_SIZE

PAGES_KEPT = 4096
"""For how many pages the positions of their pool blocks are remembered."""

_PRINTABLE = range(0x20, 0x7F)


class StackRanges:
    """Finds the thread on whose kernel stack an address lies; the threads are listed once, when first needed."""

    def __init__(self, kernel: Kernel, threads: Callable[[], Iterable[FoundThread]]) -> None:
        memory, symbols = kernel.memory, kernel.symbols
        self._memory = memory
        self._drivers = kernel.drivers
        self._threads = threads
        self._ranges: tuple[array[int], array[int], array[int]] | None = None
        members = [symbols.member("_POOL_HEADER", name) for name in ("BlockSize", "PoolType", "PoolTag")]
        self._header = symbols.size_of("_POOL_HEADER") or 2 * memory.pointer_size
        fits = all(each is not None and is_number(each) and each.offset + each.size <= self._header for each in members)
        self._tag = members[-1].offset if fits and members[-1] is not None else 0
        self._blocks: dict[int, tuple[tuple[int, int], ...]] = {}
        self._decode = Decoder(members, self._header) if fits and self._header <= PAGE_SIZE else None

    def holder(self, address: int, thread: FoundThread | None) -> int | None:
        """Return the _ETHREAD on whose kernel stack a virtual address lies.

        None if it is on none, and if a loaded module or a pool block contains it.

        Args:
            address: virtual address of a KAPC or of code.
            thread: the thread whose stack is tested first, None if unknown.
        """
        if thread is not None:
            limit, base = thread.members.stack_limit, thread.members.stack_base
            if limit and base and limit <= address < base <= limit + windows.STACK_BOUND:
                return thread.address
        if self._drivers.find_loaded(address) is not None or self.in_pool(address):
            return None
        if self._ranges is None:
            self._ranges = self._read()
        limits, bases, threads = self._ranges
        index = bisect_right(limits, address) - 1
        return threads[index] if index >= 0 and address < bases[index] else None

    def in_pool(self, address: int) -> bool:
        """Tell whether a pool block with its header on the same page contains a virtual address.

        Blocks that are larger than a page have no header there and are not found.
        """
        offset = address % PAGE_SIZE
        blocks = self._blocks.get(address - offset)
        if blocks is None:
            if len(self._blocks) >= PAGES_KEPT:
                self._blocks.clear()
            blocks = self._blocks[address - offset] = tuple(self._blocks_of(address - offset))
        return any(start <= offset < end for start, end in blocks)

    def _blocks_of(self, page: int) -> Iterator[tuple[int, int]]:
        """Yield (start, end) of the pool blocks of a page, headers excluded, as offsets in bytes."""
        data = self._memory.read(page, PAGE_SIZE)
        if data is None or self._decode is None:
            return
        # Headers may lie at hundreds of places of a page; at few of these the first byte of a tag is printable.
        for index, letter in enumerate(data[self._tag :: self._header]):
            at = index * self._header
            if letter not in _PRINTABLE or at > PAGE_SIZE - self._header:
                continue
            size, kind, tag = self._decode(data, at)
            start, end = at + self._header, at + (size or 0) * self._header
            # Type 0 is a free block; no block leaves its page.
            if kind and tag and start < end <= PAGE_SIZE and _is_tag(tag):
                yield start, end

    def _read(self) -> tuple[array[int], array[int], array[int]]:
        ranges = sorted(self._known())
        columns = zip(*ranges, strict=True) if ranges else ((), (), ())
        limits, bases, threads = (array("Q", column) for column in columns)
        return limits, bases, threads

    def _known(self) -> Iterator[tuple[int, int, int]]:
        for thread in self._threads():
            limit, base = thread.members.stack_limit, thread.members.stack_base
            if limit and base and limit < base <= limit + windows.STACK_BOUND:
                yield limit, base, thread.address


def _is_tag(tag: int) -> bool:
    """Tell whether a pool tag is four printable characters; the top bit marks a protected block and is ignored."""
    return all(letter in _PRINTABLE for letter in (tag & 0x7FFFFFFF).to_bytes(4, "little"))


@dataclass(frozen=True, slots=True)
class Placement:
    """`text` names the memory of a KAPC if no queued KAPC belongs there, else None.

    `on_stack` is whether that memory is a kernel stack.
    """

    text: str | None = None
    on_stack: bool = False


class PlacementFinder:
    """Finds the memory that KAPCs and routines lie in.

    Args:
        kernel: the image's.
        threads: gives every listed thread, for their stacks.
    """

    def __init__(self, kernel: Kernel, threads: Callable[[], Iterable[FoundThread]]) -> None:
        self._kernel_start = kernel.drivers.kernel_start
        self._stacks = StackRanges(kernel, threads)
        self._regions = Regions(kernel.memory)

    def find(self, address: int, thread: FoundThread | None) -> Placement:
        """Find the memory that a KAPC lies in.

        Args:
            address: virtual address of the _KAPC.
            thread: the one that it is queued to, None where that is unknown.
        """
        if address < self._kernel_start:
            return Placement("user space")
        region = self._regions.find(address)
        if region is not None:
            return Placement(region)
        holder = self._stacks.holder(address, thread)
        return _USUAL if holder is None else Placement(_stack_of(holder, thread), on_stack=True)

    def add_region(self, code: Code, thread: FoundThread | None) -> Code:
        """Add the name of the memory to a code address that lies in no module.

        The code is returned unchanged if a module has it or the memory has no name.
        """
        if code.backing not in _UNBACKED:
            return code
        region = self._regions.find(code.address)
        if region is None:
            holder = self._stacks.holder(code.address, thread)
            if holder is not None:
                region = _stack_of(holder, thread)
            elif self._stacks.in_pool(code.address):
                region = "pool"
        return code if region is None else replace(code, region=region)


_USUAL = Placement()
_UNBACKED = (Backing.NOTHING, Backing.UNLOADED)


def _stack_of(holder: int, thread: FoundThread | None) -> str:
    own = thread is not None and holder == thread.address
    return f"the kernel stack of {'its own thread' if own else f'thread {holder:#x}'}"
