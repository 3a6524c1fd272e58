"""Recognising threads and APCs in bytes of physical memory: candidates, and the evidence that confirms them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from struct import Struct

from .. import windows
from ..formats.layout import Decoder, Member


@dataclass(frozen=True, slots=True)
class ThreadShape:
    """The parts of _ETHREAD that the search compares; offsets in bytes from its start.

    `rings` are LIST_ENTRYs that point to themselves while empty, `backs` are pointers to the thread itself, `owners`
    are pointers to its process or to the process that it is attached to.
    `bodies` are the distances from a _POOL_HEADER at which the object may start: optional object headers come
    between, and whether the object lies at the block's start or end differs by version. `block_size` is the member of
    _POOL_HEADER that says how large the block is, in units of `alignment`; None where it is not known.
    """

    pointer_size: int
    alignment: int
    size: int
    type: int
    signal_state: int
    owners: tuple[Member, ...]
    state: Member | None
    apc_state_index: Member | None
    rings: tuple[int, ...]
    backs: tuple[int, ...]
    tag: int
    block_size: Member | None
    bodies: tuple[int, ...]
    lowest: int
    highest: int


class Verdict(Enum):
    """What a candidate is; NO_PROCESS is one that looks like a thread but whose process is no process object."""

    THREAD = "a thread"
    NO_PROCESS = "names no process"
    NOTHING = "no thread"
    OPEN = "it lies on two pages, and what follows the first one in the file need not be the second"


# Looked up once, since finding a member of an enumeration takes longer than comparing it, and the scan compares often.
THREAD, NO_PROCESS, NOTHING, OPEN = Verdict.THREAD, Verdict.NO_PROCESS, Verdict.NOTHING, Verdict.OPEN


class ThreadEvidence:
    """Judges candidates of the scan.

    The decisive test is the process: the owner of a thread is a process object, until the thread's memory is used
    again. An allocation that merely has one empty list in the right place is an IRP or a control block far more often
    than a thread.
    """

    def __init__(self, shape: ThreadShape, is_process: Callable[[int], bool]) -> None:
        self._shape = shape
        self._is_process = is_process
        self._pointer = Struct("<I" if shape.pointer_size == 4 else "<Q")
        self._links = Struct("<II" if shape.pointer_size == 4 else "<QQ")
        self._decode = Decoder([shape.state, shape.apc_state_index, *shape.owners], shape.size)
        self._last_owner: int | None = -1

    def __call__(self, data: bytes, at: int, address: int | None) -> Verdict:
        """Judge a candidate in a buffer that holds all of it.

        Args:
            data: the buffer.
            at: the candidate's offset in it.
            address: its virtual address, taken from a pointer in it to itself; None where it has no such pointer.
        """
        state, index, *owners = self._decode(data, at)
        if state is None or state > windows.IN_SWAP:
            return NOTHING
        sane = index is None or index <= 1
        if self._last_owner in owners or any(map(self._names_process, owners)):
            if sane and address is not None:
                return THREAD
            own, elsewhere = self._references(data, at, address)
            # A thread whose lists are all in use has no pointer to itself. A copy of a thread points to the original.
            return THREAD if own > 1 or (sane and elsewhere < 2) else NOTHING
        return NO_PROCESS if sane and self._references(data, at, address)[0] > 1 else NOTHING

    def _names_process(self, owner: int | None) -> bool:
        shape = self._shape
        if not owner or not shape.lowest <= owner <= shape.highest or owner % shape.pointer_size:
            return False
        if not self._is_process(owner):
            return False
        # Threads of one process lie together, so the next candidate mostly has the same owner.
        self._last_owner = owner
        return True

    def _references(self, data: bytes, at: int, address: int | None) -> tuple[int, int]:
        """Count the empty lists and pointers that refer to `address`, and the most that agree on one other address."""
        shape = self._shape
        counts: Counter[int | None] = Counter()
        for ring in shape.rings:
            flink, blink = self._links.unpack_from(data, at + ring)
            if flink == blink and shape.lowest <= flink - ring <= shape.highest:
                counts[flink - ring] += 1
        for back in shape.backs:
            (pointer,) = self._pointer.unpack_from(data, at + back)
            if shape.lowest <= pointer <= shape.highest:
                counts[pointer] += 1
        own = counts.pop(address, 0)
        return own, max(counts.values(), default=0)


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
    """The parts of _KAPC that the search compares; offsets in bytes from its start."""

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
    """Finds threads by dispatcher header and pool tag, and their virtual addresses by their pointers to themselves."""

    def __init__(self, shape: ThreadShape, judge: ThreadEvidence, processes: frozenset[int | None]) -> None:
        self._shape = shape
        self._judge = judge
        self._processes = processes
        self._pointer = Struct("<I" if shape.pointer_size == 4 else "<Q")
        self._links = Struct("<II" if shape.pointer_size == 4 else "<QQ")
        self._in_page = PAGE_OFFSET + 1 - shape.size
        self._last_distance = shape.bodies[0] if shape.bodies else 0
        self._owners = Decoder(shape.owners, shape.size)
        header = shape.block_size.offset + shape.block_size.size if shape.block_size is not None else 0
        self._block_size = Decoder([shape.block_size], header)

    def __call__(self, data: bytes, base: int, limit: int) -> Iterator[tuple[Verdict, int, int | None]]:
        """Yield (verdict, physical address, virtual address) of candidates; None is an unknown virtual address.

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
                if virtual is not None or self._names_listed_process(data, at):
                    verdict = self._judge_at(data, at, base + at, virtual)
                    if verdict is not NOTHING:
                        found.add(at)
                    # NOTHING is given too, since it counts against the bound: memory may be full of such candidates.
                    yield verdict, base + at, virtual
        for match in _TAGS.finditer(data):
            block = match.start() - shape.tag
            if block < 0 or (base + block) % shape.alignment or block >= limit or block + self._last_distance in found:
                continue
            hit = self._find_in_block(data, base, block, found)
            if hit is not None:
                yield hit

    def _judge_at(self, data: bytes, at: int, physical: int, virtual: int | None) -> Verdict:
        return self._judge(data, at, virtual) if physical & PAGE_OFFSET <= self._in_page else OPEN

    def _find_in_block(
        self, data: bytes, base: int, block: int, found: set[int]
    ) -> tuple[Verdict, int, int | None] | None:
        """Find the thread in the pool block that starts at an offset, unless its header has been found already."""
        last = min(self._last_start(data, block), len(data) - self._shape.size - block)
        bodies = [block + distance for distance in (self._last_distance, *self._shape.bodies) if distance <= last]
        if not found.isdisjoint(bodies):
            return None
        for at in bodies:
            virtual = self.recover(data, at, base + at)
            verdict = NOTHING if virtual is None else self._judge_at(data, at, base + at, virtual)
            if verdict is not NOTHING:
                self._last_distance = at - block
                found.add(at)
                return verdict, base + at, virtual
        return None

    def _last_start(self, data: bytes, block: int) -> int:
        """Return the largest distance in bytes from a pool header at which a thread in its block can begin."""
        (size,) = self._block_size(data, block) if block + self._block_size.size <= len(data) else (0,)
        return len(data) if size is None else size * self._shape.alignment - self._shape.size

    def recover(self, data: bytes, at: int, physical: int) -> int | None:
        """Return the virtual address that a thread's pointers to itself give, if its page offset fits `physical`."""
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

    def _names_listed_process(self, data: bytes, at: int) -> bool:
        return not self._processes.isdisjoint(self._owners(data, at))


class ApcFinder:
    """Finds KAPCs whose Inserted says that they are queued."""

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
        """Tell whether the members that can be read are those of a queued KAPC: Inserted, ApcMode, KernelRoutine."""
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
