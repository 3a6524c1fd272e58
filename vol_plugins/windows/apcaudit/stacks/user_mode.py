"""Where kernel stacks are entered from user mode, and where the kernel calls user mode and is entered again."""

from __future__ import annotations

from dataclasses import dataclass

from ..image.structures import read_member
from ..kernel import Kernel
from ..model import Thread
from ..threads.kernel_stacks import StackSegments
from ..unwind.registers import STACK_POINTER, Registers, partial_registers
from ..unwind.scan import CodeView
from ..unwind.stack_view import StackView
from ..unwind.x86 import TrapFrames

# KCALLOUT_FRAME, which no PDB has; _KTHREAD.CallbackStack points to it (ReactOS, sdk/include/ndk/i386/ketypes.h and
# KiCallUserMode in ntoskrnl/ke/i386/usercall_asm.S, which pushes it): InitialStack, TrapFrame, CallbackStack, EDI, ESI,
# EBX, EBP, the return address.
_INITIAL_STACK, _TRAP_FRAME, _CALLBACK_STACK, _EBP, _RETURN_ADDRESS = 0x0, 0x4, 0x8, 0x18, 0x1C


@dataclass(frozen=True, slots=True)
class Callout:
    """The caller of KiCallUserMode: its registers and the address of its instruction pointer on the stack.

    `trap_frame` is the previous _KTHREAD.TrapFrame, `previous` the callout frame of the enclosing call, 0 for none.
    """

    registers: Registers
    found_at: int
    trap_frame: int
    previous: int


def read_callout(stack: StackView, address: int) -> Callout | None:
    """Read the KCALLOUT_FRAME at _KTHREAD.CallbackStack; None if it is not one (in Windows 7 it may be a depth)."""
    initial, previous = stack.word(address + _INITIAL_STACK), stack.word(address + _CALLBACK_STACK)
    trap_frame, bp = stack.word(address + _TRAP_FRAME), stack.word(address + _EBP)
    found_at = address + _RETURN_ADDRESS
    ip = stack.word(found_at)
    if initial is None or previous is None or trap_frame is None or bp is None or ip is None:
        return None
    # The saved addresses are of the same stack and farther out.
    if not address < initial <= stack.base or (previous and not address < previous < stack.base):
        return None
    return Callout(partial_registers(ip, found_at + 4, bp, 4), found_at, trap_frame, previous)


# Registers by number as members of _KEXCEPTION_FRAME, in which KiCallUserMode of x64 saves them; it leaves the address
# of that frame as Previous.KernelStack in the structure at the new InitialStack (decompiled KiCallUserMode of Windows
# 10; WRK, ke/amd64/callout.asm).
_SAVED = {3: "Rbx", 5: "Rbp", 6: "Rsi", 7: "Rdi", 12: "R12", 13: "R13", 14: "R14", 15: "R15"}

# The member of _KTRAP_FRAME in which a system service saves the previous _KTHREAD.TrapFrame, by size of a pointer:
# ReactOS, KiSystemServiceHandler (ntoskrnl/ke/i386/traphdlr.c and ke/amd64/traphandler.c). There is a previous one
# because the kernel calls system services too.
_PREVIOUS = {4: "Edx", 8: "TrapFrame"}
_MODE_MASK = 1  # of SegCs: a selector of ring 3

NESTED_BOUND = 16
"""How many nested system services are followed to find the one that user mode called."""


class UserModeEntries:
    """Finds a thread's entries from user mode (trap frames), and its calls of user mode (callout frames)."""

    def __init__(self, kernel: Kernel, code: CodeView) -> None:
        memory, symbols = kernel.memory, kernel.symbols
        self._memory, self._symbols = memory, symbols
        self._code = code
        self._segments = StackSegments(kernel)
        self.traps: TrapFrames | None = None
        if memory.pointer_size == 4:
            self.traps = TrapFrames.from_symbols(symbols.member, symbols.address("KiSystemService"))

    def latest(self, thread: Thread, stack: StackView) -> int | None:
        """Return the address of the trap frame of the thread's latest entry from user mode; None if there is none."""
        return self.from_user(self._member("_ETHREAD", "Tcb.TrapFrame", thread.address), stack)

    def callouts(self, thread: Thread, stacks: tuple[StackView, ...]) -> list[tuple[Callout, StackView]]:
        """Return the callers of user mode with their stacks, the latest first; one that cannot be read ends the list.

        The stacks have the trap frame of the entry from user mode before that call.
        """
        if self._memory.pointer_size == 8:
            return self._of_segments(thread, stacks)
        found: list[tuple[Callout, StackView]] = []
        # Windows 8 and later have no CallbackStack.
        address = self._member("_ETHREAD", "Tcb.CallbackStack", thread.address) if self.traps is not None else None
        while address:
            stack = next((each for each in stacks if each.holds(address)), None)
            callout = None if stack is None else read_callout(stack, address)
            if stack is None or callout is None or not self._is_called(callout):
                break
            found.append((callout, stack.with_entry(self.from_user(callout.trap_frame, stack))))
            address = callout.previous
        return found

    def _of_segments(self, thread: Thread, stacks: tuple[StackView, ...]) -> list[tuple[Callout, StackView]]:
        found = []
        for segment in self._segments.read(thread.members):
            stack = next((each for each in stacks if each.holds(segment.previous_sp)), None)
            callout = None if stack is None else self._read_exception_frame(stack, segment.previous_sp)
            entry = None if stack is None or callout is None else self.from_user(callout.trap_frame, stack)
            # Without such a trap frame this is a stack of KeExpandKernelStackAndCallout.
            if stack is None or callout is None or entry is None or not self._is_called(callout):
                continue
            found.append((callout, stack.with_entry(entry)))
        return found

    def _read_exception_frame(self, stack: StackView, address: int) -> Callout | None:
        """Read the registers that KiCallUserMode of x64 saved in a _KEXCEPTION_FRAME."""
        member, size = self._symbols.member, self._symbols.size_of("_KEXCEPTION_FRAME")
        places = {name: member("_KEXCEPTION_FRAME", name) for name in (*_SAVED.values(), "TrapFrame", "Return")}
        words = {name: None if at is None else stack.word(address + at.offset) for name, at in places.items()}
        ip, trap_frame, return_at = words["Return"], words["TrapFrame"], places["Return"]
        if size is None or ip is None or trap_frame is None or return_at is None:
            return None
        general = tuple(words[_SAVED[number]] if number in _SAVED else None for number in range(16))
        registers = Registers(ip, general).with_register(STACK_POINTER, address + size)
        return Callout(registers, address + return_at.offset, trap_frame, 0)

    def _is_called(self, callout: Callout) -> bool:
        ip = callout.registers.ip
        return self._code.is_code(ip) and self._code.call_before(ip).follows is not False

    def from_user(self, frame: int | None, stack: StackView) -> int | None:
        """Return the address of the trap frame of an entry from user mode, which the one at an address may lead to."""
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
