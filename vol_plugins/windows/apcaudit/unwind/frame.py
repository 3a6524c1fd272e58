"""The frames of a kernel stack, and how each was found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..model import Code


class How(str, Enum):
    """How a frame was found: by saved registers, unwind data, EBP, or a search of the stack for return addresses.

    INTERRUPTED: by the trap frame of an interrupt or exception; the frame's code address is the next instruction and
    not a return address. CALLOUT: by the frame of a call from kernel to user mode (KeUserModeCallback).
    """

    SAVED = "saved"
    UNWOUND = "unwound"
    FRAME_POINTER = "frame pointer"
    SCANNED = "scanned"
    INTERRUPTED = "interrupted"
    CALLOUT = "callout"


@dataclass(frozen=True, slots=True)
class Frame:
    """A stack frame; None means unknown.

    `code` is the saved instruction pointer of the innermost frame and of interrupted ones, else the return address,
    which was read at the virtual address `found_at`. `address` is the frame's EBP on x86 (a debugger's ChildEBP) and
    its stack pointer on x64 (Child-SP). `arguments` are the first three words above the return address, on x86 only.
    `follows_call` is whether a call instruction precedes `code`, None where that cannot be read or does not apply.
    """

    code: Code
    how: How
    address: int | None = None
    found_at: int | None = None
    return_address: int | None = None
    arguments: tuple[int, ...] = ()
    follows_call: bool | None = None

    def __str__(self) -> str:
        uncertain = self.how is How.SCANNED and not self.follows_call
        return f"{self.code.text}?" if uncertain else self.code.text


@dataclass(frozen=True, slots=True)
class Stack:
    """The frames of a thread, innermost first, and where the walk began and how it ended.

    If there are no frames, `ending` says why; `start` is empty if no walk began.
    """

    frames: tuple[Frame, ...]
    start: str
    ending: str

    def __str__(self) -> str:
        """Return the frames in one line; of consecutive frames found in the same way, the last one says how."""
        if not self.frames:
            return self.ending
        parts = []
        for position, frame in enumerate(self.frames):
            following = self.frames[position + 1].how if position + 1 < len(self.frames) else None
            parts.append(str(frame) if following is frame.how else f"{frame} ({frame.how.value})")
        return " <- ".join(parts)
