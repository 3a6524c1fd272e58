"""Tell threads from what only looks like one: by the process that they name, their state and what points to itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from struct import Struct

from .. import facts as windows
from ..layout import Decoder, Member


@dataclass(frozen=True, slots=True)
class ThreadShape:
    """What of _ETHREAD the search compares; offsets in bytes from its start.

    `rings` are LIST_ENTRYs that point to themselves while empty, `backs` are pointers to the thread itself, `owners`
    pointers to its process or to the one that it is attached to.
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
    """What lies where a thread may be; NO_PROCESS is a thread but for its process, which is none."""

    THREAD = "a thread"
    NO_PROCESS = "names no process"
    NOTHING = "no thread"
    OPEN = "it lies on two pages, and what follows the first one in the file need not be the second"


# Looked up once: an enumeration's member takes longer to find than to compare, and the scan asks for every candidate.
THREAD, NO_PROCESS, NOTHING, OPEN = Verdict.THREAD, Verdict.NO_PROCESS, Verdict.NOTHING, Verdict.OPEN


class ThreadEvidence:
    """Judges candidates of the scan.

    Exact is the process: every thread's owner is a process object, until the thread's memory is used again. What
    lies in pool with one empty list in the right place is an IRP or a control block far more often than a thread.
    """

    def __init__(self, shape: ThreadShape, is_process: Callable[[int], bool]) -> None:
        self._shape = shape
        self._is_process = is_process
        self._pointer = Struct("<I" if shape.pointer_size == 4 else "<Q")
        self._links = Struct("<II" if shape.pointer_size == 4 else "<QQ")
        self._decode = Decoder([shape.state, shape.apc_state_index, *shape.owners], shape.size)
        self._last_owner: int | None = -1

    def __call__(self, data: bytes, at: int, address: int | None) -> Verdict:
        """Judge what lies at an offset of a buffer that holds all of it.

        Args:
            data: the buffer.
            at: where in it an _ETHREAD may be.
            address: its virtual address as something in it tells; None where nothing in it points to where it lies.
        """
        state, index, *owners = self._decode(data, at)
        if state is None or state > windows.IN_SWAP:
            return NOTHING
        sane = index is None or index <= 1
        if self._last_owner in owners or any(map(self._names, owners)):
            if sane and address is not None:
                return THREAD
            own, elsewhere = self._references(data, at, address)
            # A thread all of whose lists are in use points to nothing in itself. A copy of one points to the original.
            return THREAD if own > 1 or (sane and elsewhere < 2) else NOTHING
        return NO_PROCESS if sane and self._references(data, at, address)[0] > 1 else NOTHING

    def _names(self, owner: int | None) -> bool:
        shape = self._shape
        if not owner or not shape.lowest <= owner <= shape.highest or owner % shape.pointer_size:
            return False
        if not self._is_process(owner):
            return False
        # Threads of a process lie together: the next one mostly has the same.
        self._last_owner = owner
        return True

    def _references(self, data: bytes, at: int, address: int | None) -> tuple[int, int]:
        """Count the empty lists and pointers that are those of a thread here, and the most of one anywhere else."""
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
