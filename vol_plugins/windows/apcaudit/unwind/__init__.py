"""A kernel stack: its memory, which is read once, and its frames, with how each was found and on which stack."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from struct import unpack_from
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..model import Code


class How(str, Enum):
    """How a frame was found: by saved registers, unwind data, EBP, or a search of the stack for return addresses.

    INTERRUPTED: by the trap frame or CONTEXT of an interrupt or exception; the frame's code address is the next
    instruction and not a return address. CALLOUT: by the frame of a call from kernel to user mode (KeUserModeCallback).
    SWITCHED: by what the kernel saved when it switched to the stack of the next inner frame.
    """

    SAVED = "saved"
    UNWOUND = "unwound"
    FRAME_POINTER = "frame pointer"
    SCANNED = "scanned"
    INTERRUPTED = "interrupted"
    CALLOUT = "callout"
    SWITCHED = "switched"


class StackKind(str, Enum):
    """A kernel stack: the thread's own, one that it grew into, or one of its processor's; OTHER is of unknown use.

    EXPANDED: a stack of KeExpandKernelStackAndCallout or of a call to user mode (win32k). EXCEPTION: where Windows 10
    and later handle exceptions on a nearly full stack.
    """

    THREAD = "thread"
    EXPANDED = "expanded"
    DPC = "DPC"
    INTERRUPT = "interrupt"
    EXCEPTION = "exception"
    OTHER = "other"

    @property
    def processors(self) -> bool:
        """Whether it is one of the processor's stacks, which threads run on for a while."""
        return self in (StackKind.DPC, StackKind.INTERRUPT, StackKind.EXCEPTION)


@dataclass(frozen=True, slots=True)
class StackRange:
    """A kernel stack [limit, base)."""

    kind: StackKind
    limit: int
    base: int

    def holds(self, address: int) -> bool:
        """Return whether an address is on the stack."""
        return self.limit <= address < self.base


@dataclass(frozen=True, slots=True)
class Frame:
    """A stack frame; None means unknown.

    `code` is the saved instruction pointer of the innermost frame and of interrupted ones, else the return address,
    which was read at the virtual address `found_at`. `return_address` is the `code` of the next outer frame.
    `address` is the frame's EBP on x86 (a debugger's ChildEBP) and its stack pointer on x64 (Child-SP). `arguments` are
    the first three words above the return address, on x86 only.
    `follows_call` is whether a call instruction precedes `code`, None where that cannot be read or does not apply.
    `stack` is the stack that the frame is on. `certain` is False for a return address that may be left over from a call
    that has returned: nothing shows that the call before it led to the next inner frame.
    """

    code: Code
    how: How
    address: int | None = None
    found_at: int | None = None
    return_address: int | None = None
    arguments: tuple[int, ...] = ()
    follows_call: bool | None = None
    stack: StackKind = StackKind.THREAD
    certain: bool = True

    def __str__(self) -> str:
        return self.code.text if self.certain else f"{self.code.text}?"


@dataclass(frozen=True, slots=True)
class Stack:
    """The frames of a thread, innermost first, and where the walk began and how it ended.

    If there are no frames, `ending` says why; `start` is empty if no walk began.
    """

    frames: tuple[Frame, ...]
    start: str
    ending: str

    def __str__(self) -> str:
        """Return the frames in one line; of consecutive frames found in the same way, the last one says how.

        A stack is named where the walk switches to it, and at the first frame if it is not the thread's own.
        """
        if not self.frames:
            return self.ending
        parts = []
        on = StackKind.THREAD
        for position, frame in enumerate(self.frames):
            following = self.frames[position + 1] if position + 1 < len(self.frames) else None
            named = "" if frame.stack is on else f"[{frame.stack.value} stack] "
            on = frame.stack
            alike = following is not None and (following.how, following.stack) == (frame.how, frame.stack)
            parts.append(f"{named}{frame}" if alike else f"{named}{frame} ({frame.how.value})")
        return " <- ".join(parts)


@dataclass(frozen=True, slots=True)
class Switch:
    """The addresses at which the kernel saves the old ip and sp when it switches to a stack.

    `ip_at` is None where no instruction pointer is saved: the function that switched stacks is still the innermost one.
    """

    ip_at: int | None
    sp_at: int

    @property
    def start(self) -> int:
        """The lower one of the two addresses; no frame is above it."""
        return self.sp_at if self.ip_at is None else min(self.ip_at, self.sp_at)


class StackView:
    """The words of a kernel stack [limit, base), read once.

    Args:
        limit: its lowest address.
        data: its bytes; those in the holes are ignored.
        holes: the unreadable ranges [start, end) in bytes from the limit.
        pointer_size: 4 or 8.
        entry: address of the trap frame of the entry from user mode, None where there is none. Above it there are no
            frames, only floating-point state and leftovers of earlier calls.
        kind: which stack it is.
        switch: where the switch to this stack saved the old ip and sp, None where the kernel never switches to it.
        others: the known stacks on which a walk may continue.
    """

    def __init__(
        self,
        limit: int,
        data: bytes,
        holes: Iterable[tuple[int, int]],
        pointer_size: int,
        entry: int | None = None,
        *,
        kind: StackKind = StackKind.THREAD,
        switch: Switch | None = None,
        others: tuple[StackRange, ...] = (),
    ) -> None:
        self.limit = limit
        self.base = limit + len(data)
        self.pointer_size = pointer_size
        self.entry = entry
        self.kind = kind
        self.switch = switch
        self.others = others
        self._data = data
        self._holes = tuple(holes)

    @property
    def present(self) -> bool:
        """Whether any of it can be read."""
        return sum(end - start for start, end in self._holes) < len(self._data)

    @property
    def range(self) -> StackRange:
        """Which stack it is, and where."""
        return StackRange(self.kind, self.limit, self.base)

    @property
    def top(self) -> int:
        """The address above which there are no frames."""
        top = self.base if self.entry is None else self.entry
        return top if self.switch is None else min(top, self.switch.start)

    @property
    def searched(self) -> str:
        """The ending of a walk that found no further return address up to the top."""
        where = "on the stack" if self.entry is None else "below the trap frame of the entry from user mode"
        return f"no further return address {where}"

    def with_entry(self, entry: int | None) -> StackView:
        """Return the same stack with another trap frame of the entry from user mode."""
        return StackView(
            self.limit,
            self._data,
            self._holes,
            self.pointer_size,
            entry,
            kind=self.kind,
            switch=self.switch,
            others=self.others,
        )

    def is_on_other(self, address: int) -> bool:
        """Return whether an address is on another known stack on which a walk may continue."""
        return any(other.holds(address) for other in self.others)

    def word(self, address: int) -> int | None:
        """Return the word at an address; None outside the stack, at an unaligned address, or in a hole."""
        start, end = address - self.limit, address - self.limit + self.pointer_size
        if start < 0 or end > len(self._data) or address % self.pointer_size:
            return None
        if any(max(start, hole) < min(end, hole_end) for hole, hole_end in self._holes):
            return None
        return int.from_bytes(self._data[start:end], "little")

    def words(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield (address, value) of the words in [start, end), except zeros and words in holes."""
        size = self.pointer_size
        first = -(-max(start, self.limit) // size) * size
        count = max(min(end, self.base) - first, 0) // size
        piece = self._data[first - self.limit : first - self.limit + count * size]
        # A stack grows down from its base, so most of it may never have been written.
        used = piece.lstrip(b"\0")
        skipped = (len(piece) - len(used)) // size
        # The rest is unpacked at once, so that words that are zero cost almost nothing.
        values = unpack_from(f"<{count - skipped}{'Q' if size == 8 else 'I'}", piece, skipped * size)
        for address, value in zip(range(first + skipped * size, first + count * size, size), values, strict=True):
            if value and self.word(address) is not None:
                yield address, value

    def find_word(self, value: int, start: int, end: int) -> Iterator[int]:
        """Yield the addresses in [start, end) of words with a given value."""
        wanted = value.to_bytes(self.pointer_size, "little")
        at = self._data.find(wanted, max(start - self.limit, 0))
        while 0 <= at < end - self.limit:
            if self.word(self.limit + at) == value:
                yield self.limit + at
            at = self._data.find(wanted, at + 1)

    def holds(self, address: int) -> bool:
        """Return whether an address is on the stack."""
        return self.limit <= address < self.base
