"""Where a thread entered the kernel from user mode: its trap frames, and the calls of user mode that it made since."""

from __future__ import annotations

from ..memory import Memory
from ..model import Thread
from ..structures import read_member
from ..symbols import KernelSymbols
from .callout import Callout, read_callout
from .surroundings import CodeView, StackView
from .trap_frame import TrapFrames

# The member of _KTRAP_FRAME in which a system service keeps what _KTHREAD.TrapFrame was, by size of a pointer: ReactOS,
# KiSystemServiceHandler (ntoskrnl/ke/i386/traphdlr.c and ke/amd64/traphandler.c). The kernel calls services itself.
_PREVIOUS = {4: "Edx", 8: "TrapFrame"}
_MODE_MASK = 1  # of SegCs: a selector of ring 3

NESTED_BOUND = 16
"""How many system services that called one another are looked through for the one that user mode called."""


class Entries:
    """Reads one image."""

    def __init__(self, memory: Memory, symbols: KernelSymbols, code: CodeView) -> None:
        self._memory = memory
        self._symbols = symbols
        self._code = code
        self.traps: TrapFrames | None = None
        if memory.pointer_size == 4:
            self.traps = TrapFrames.of(symbols.member, symbols.address("KiSystemService"))

    def of(self, thread: Thread, stack: StackView) -> int | None:
        """Return the address of the trap frame of the thread's latest entry from user mode, None where it has none."""
        return self._from_user(self._member("_ETHREAD", "Tcb.TrapFrame", thread.address), stack)

    def callout(self, thread: Thread) -> int | None:
        """Return the address of the frame of the thread's latest call of user mode; 8 and later do not keep it."""
        return self._member("_ETHREAD", "Tcb.CallbackStack", thread.address) if self.traps is not None else None

    def beyond(self, callout: int, stack: StackView) -> tuple[Callout, StackView] | None:
        """Return what a call of user mode saved, and the stack up to the entry before; None where there is no such."""
        found = read_callout(stack, callout)
        if found is None or not self._code.is_code(found.ip) or self._code.call_before(found.ip).follows is False:
            return None
        return found, stack.entered_at(self._from_user(found.trap_frame, stack))

    def _from_user(self, frame: int | None, stack: StackView) -> int | None:
        for _ in range(NESTED_BOUND):
            if not frame or not stack.holds(frame):
                break
            selector = self._member("_KTRAP_FRAME", "SegCs", frame)
            if selector is None or selector & _MODE_MASK:
                return None if selector is None else frame
            frame = self._member("_KTRAP_FRAME", _PREVIOUS[stack.pointer_size], frame)
        return None

    def _member(self, structure: str, path: str, address: int) -> int | None:
        return read_member(self._memory, self._symbols, structure, path, address)
