"""Find what may be a thread or a KAPC in a run of bytes of physical memory, without asking for addresses.

The search itself is bytes' own and re's, over every alignment-th byte; Python sees only what passes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct

from .. import facts as windows
from ..layout import Decoder
from .thread_evidence import NOTHING, OPEN, ThreadEvidence, ThreadShape, Verdict

PAGE_OFFSET = 0xFFF
"""Bits of an address that are the same in virtual and in physical memory."""

_THREAD_TYPE = re.compile(re.escape(bytes([windows.THREAD_OBJECT])))
_APC_TYPE = re.compile(re.escape(bytes([windows.APC_OBJECT])))

# Pool tags of thread objects: protected (top bit set) to 7, plain since 8 (pooltag.txt; both seen in images).
_TAGS = re.compile(b"Thr[e\xe5]")

# _DISPATCHER_HEADER.SignalState of a thread: 1 once it has ended, 0 before (WDK, "Kernel Dispatcher Objects").
_SIGNAL_STATES = frozenset({bytes(4), b"\x01\0\0\0"})


@dataclass(frozen=True, slots=True)
class ApcShape:
    """What of _KAPC the search compares; offsets in bytes from its start."""

    pointer_size: int
    size: int
    type_size: int
    size_at: int
    size_size: int
    thread: int
    kernel_routine: int
    apc_state_index: int
    apc_mode: int
    inserted: int
    lowest: int
    highest: int


class ThreadFinder:
    """Finds threads by dispatcher header and by pool tag, and their virtual addresses by what points to itself."""

    def __init__(self, shape: ThreadShape, judge: ThreadEvidence, processes: frozenset[int | None]) -> None:
        self._shape = shape
        self._judge = judge
        self._processes = processes
        self._pointer = Struct("<I" if shape.pointer_size == 4 else "<Q")
        self._links = Struct("<II" if shape.pointer_size == 4 else "<QQ")
        self._in_page = PAGE_OFFSET + 1 - shape.size
        self._last_body = shape.bodies[0] if shape.bodies else 0
        self._owners = Decoder(shape.owners, shape.size)
        header = shape.block_size.offset + shape.block_size.size if shape.block_size is not None else 0
        self._block_size = Decoder([shape.block_size], header)

    def __call__(self, data: bytes, base: int, limit: int) -> Iterator[tuple[Verdict, int, int | None]]:
        """Yield (verdict, physical, virtual address) of what may be a thread; None is an address not told by itself.

        Args:
            data: bytes of physical memory.
            base: physical address of the first of them.
            limit: offset from which hits belong to the next run.
        """
        shape = self._shape
        first = -base % shape.alignment
        found = set()
        last = min(limit, len(data) - shape.size + 1)
        signal = shape.signal_state
        for match in _THREAD_TYPE.finditer(data[first + shape.type :: shape.alignment]):
            at = first + match.start() * shape.alignment
            if at >= last:
                break
            if data[at + signal : at + signal + 4] in _SIGNAL_STATES:
                virtual = self.recover(data, at, base + at)
                if virtual is not None or self._owned(data, at):
                    verdict = self._judged(data, at, base + at, virtual)
                    if verdict is not NOTHING:
                        found.add(at)
                    # What is nothing counts, too: memory can be full of it.
                    yield verdict, base + at, virtual
        for match in _TAGS.finditer(data):
            block = match.start() - shape.tag
            if block < 0 or (base + block) % shape.alignment or block >= limit or block + self._last_body in found:
                continue
            hit = self._behind(data, base, block, found)
            if hit is not None:
                yield hit

    def _judged(self, data: bytes, at: int, physical: int, virtual: int | None) -> Verdict:
        return self._judge(data, at, virtual) if physical & PAGE_OFFSET <= self._in_page else OPEN

    def _behind(self, data: bytes, base: int, block: int, found: set[int]) -> tuple[Verdict, int, int | None] | None:
        """Find the thread in the pool block that starts at an offset, unless its header has been found already."""
        last = min(self._room(data, block), len(data) - self._shape.size - block)
        bodies = [block + distance for distance in (self._last_body, *self._shape.bodies) if distance <= last]
        if not found.isdisjoint(bodies):
            return None
        for at in bodies:
            virtual = self.recover(data, at, base + at)
            verdict = NOTHING if virtual is None else self._judged(data, at, base + at, virtual)
            if verdict is not NOTHING:
                self._last_body = at - block
                found.add(at)
                return verdict, base + at, virtual
        return None

    def _room(self, data: bytes, block: int) -> int:
        """Tell how far behind its pool header a block's thread may begin, by the size that the header gives it."""
        (size,) = self._block_size(data, block) if block + self._block_size.size <= len(data) else (0,)
        return len(data) if size is None else size * self._shape.alignment - self._shape.size

    def recover(self, data: bytes, at: int, physical: int) -> int | None:
        """Return the virtual address that a thread's own pointers give, when they agree with where it lies."""
        shape = self._shape
        low = physical & PAGE_OFFSET
        for ring in shape.rings:
            flink, blink = self._links.unpack_from(data, at + ring)
            if flink == blink and (flink - ring) & PAGE_OFFSET == low and shape.lowest <= flink - ring <= shape.highest:
                return int(flink - ring)
        for back in shape.backs:
            (pointer,) = self._pointer.unpack_from(data, at + back)
            if pointer & PAGE_OFFSET == low and shape.lowest <= pointer <= shape.highest:
                return int(pointer)
        return None

    def _owned(self, data: bytes, at: int) -> bool:
        return not self._processes.isdisjoint(self._owners(data, at))


class ApcFinder:
    """Finds KAPCs that say they are queued."""

    def __init__(self, shape: ApcShape) -> None:
        self._shape = shape
        self._pointer = Struct("<I" if shape.pointer_size == 4 else "<Q")
        self._type = windows.APC_OBJECT.to_bytes(shape.type_size, "little")
        self._size = shape.size.to_bytes(shape.size_size, "little")

    def __call__(self, data: bytes, base: int, limit: int) -> Iterator[tuple[int, int]]:
        """Yield (physical address, KAPC.Thread); members beyond the end of a page are not looked at.

        Args:
            data: bytes of physical memory.
            base: physical address of the first of them.
            limit: offset from which hits belong to the next run.
        """
        shape = self._shape
        step = shape.pointer_size
        first = -base % step
        for match in _APC_TYPE.finditer(data[first::step]):
            at = first + match.start() * step
            if at >= limit:
                break
            size = data[at + shape.size_at : at + shape.size_at + shape.size_size]
            if size != self._size or data[at : at + shape.type_size] != self._type:
                continue
            room = PAGE_OFFSET + 1 - ((base + at) & PAGE_OFFSET)
            thread = self._member(data, at, shape.thread, room)
            if thread is not None and self._sane(data, at, room):
                yield base + at, thread

    def _sane(self, data: bytes, at: int, room: int) -> bool:
        """Tell whether what can be seen is that of a queued KAPC: Inserted, a known mode, a kernel routine."""
        shape = self._shape
        if shape.inserted < room and at + shape.inserted < len(data):
            if not data[at + shape.inserted] or data[at + shape.apc_mode] > windows.USER_MODE:
                return False
            if data[at + shape.apc_state_index] > windows.LAST_ENVIRONMENT:
                return False
        return shape.kernel_routine >= room or self._member(data, at, shape.kernel_routine, room) is not None

    def _member(self, data: bytes, at: int, offset: int, room: int) -> int | None:
        """Return a pointer member that is a kernel address, else None."""
        if offset + self._pointer.size > room or at + offset + self._pointer.size > len(data):
            return None
        (value,) = self._pointer.unpack_from(data, at + offset)
        return value if self._shape.lowest <= value <= self._shape.highest else None
