"""The frames of a kernel stack, which stack each is on, and how each was found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..model import Code


class How(str, Enum):
    """How a frame was found: by saved registers, unwind data, EBP, or a search of the stack for return addresses.

    INTERRUPTED: by the trap frame or CONTEXT of an interrupt or exception; the frame's code address is the next
    instruction and not a return address. CALLOUT: by the frame of a call from kernel to user mode (KeUserModeCallback).
    SWITCHED: by what the kernel saved when it changed to the stack of the frame below.
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
    and later handle exceptions of a nearly full stack.
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
    which was read at the virtual address `found_at`. `address` is the frame's EBP on x86 (a debugger's ChildEBP) and
    its stack pointer on x64 (Child-SP). `arguments` are the first three words above the return address, on x86 only.
    `follows_call` is whether a call instruction precedes `code`, None where that cannot be read or does not apply.
    `stack` is the stack that the frame is on. `certain` is False for a return address that may be left over from a call
    that has returned: nothing shows that the call before it led to the frame below.
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

        The stack is named where it is not the thread's, and where it changes.
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
