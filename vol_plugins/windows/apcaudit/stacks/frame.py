"""A frame of a kernel stack and a stack, as the audit gives them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..model import Code


class How(str, Enum):
    """How a frame was found: by saved registers, unwind data, EBP, or a search of the stack.

    INTERRUPTED is by what an interrupt or exception saved, so that the frame is at the instruction that comes next;
    CALLOUT by what a call of user mode saved.
    """

    SAVED = "saved"
    UNWOUND = "unwound"
    FRAME_POINTER = "frame pointer"
    SCANNED = "scanned"
    INTERRUPTED = "interrupted"
    CALLOUT = "callout"


@dataclass(frozen=True, slots=True)
class Frame:
    """A function that had been entered and not left; None is what is not known.

    `code` is the instruction it was at: of the innermost frame and of an interrupted one what was saved, of the others
    the return address, found at the virtual address `found_at`. `address` is EBP in this frame on x86 (ChildEBP of a
    debugger), the stack pointer in it on x64 (Child-SP). `arguments` are the first three words above the return
    address, on x86. `follows_call` is whether a call instruction precedes `code`, None where that cannot be read or
    does not matter.
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
    """The frames of a thread, innermost first: where the walk began, and how it ended.

    Without frames `ending` says why there are none; `start` is empty where no walk began.
    """

    frames: tuple[Frame, ...]
    start: str
    ending: str

    def __str__(self) -> str:
        """Give the frames in one line; how they were found stands behind the last of each kind."""
        if not self.frames:
            return self.ending
        parts = []
        for position, frame in enumerate(self.frames):
            following = self.frames[position + 1].how if position + 1 < len(self.frames) else None
            parts.append(str(frame) if following is frame.how else f"{frame} ({frame.how.value})")
        return " <- ".join(parts)
