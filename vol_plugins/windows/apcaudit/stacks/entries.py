"""Where kernel stacks are entered: by the exception that stopped the machine, from user mode, and by callouts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..image.structures import read_member
from ..kernel import Kernel
from ..model import BugCheck, Thread
from ..threads.kernel_stacks import StackSegments
from ..unwind import StackView
from ..unwind.registers import (
    CONTEXT_BYTES,
    CONTEXT_IP,
    STACK_POINTER,
    ExceptionRegisters,
    Registers,
    TrapFrame,
    TrapFrames64,
    partial_registers,
    registers_from_context,
)
from ..unwind.scan import CodeView
from ..unwind.x86 import TrapFrames


@dataclass(frozen=True, slots=True)
class Named:
    """The numbers, from 1, of a bugcheck's parameters that have the address of a CONTEXT, a trap frame, or the code.

    `instruction` is the one with the address of the instruction that caused the exception. 0 is none.
    """

    context: int = 0
    trap_frame: int = 0
    instruction: int = 0


# Microsoft, "Bug Check Code Reference", the page of each.
NAMED = {
    0x0A: Named(instruction=4),  # IRQL_NOT_LESS_OR_EQUAL
    0x1E: Named(instruction=2),  # KMODE_EXCEPTION_NOT_HANDLED
    0x3B: Named(context=3, instruction=2),  # SYSTEM_SERVICE_EXCEPTION
    0x50: Named(instruction=3),  # PAGE_FAULT_IN_NONPAGED_AREA
    0x7E: Named(context=4, instruction=2),  # SYSTEM_THREAD_EXCEPTION_NOT_HANDLED
    0x8E: Named(trap_frame=3, instruction=2),  # KERNEL_MODE_EXCEPTION_NOT_HANDLED
    0xC5: Named(instruction=4),  # DRIVER_CORRUPTED_EXPOOL
    0xD1: Named(instruction=4),  # DRIVER_IRQL_NOT_LESS_OR_EQUAL
    0x139: Named(trap_frame=2),  # KERNEL_SECURITY_CHECK_FAILURE
}


class Exceptions:
    """Finds the registers at the exception that a bugcheck is about.

    Args:
        kernel: the image's kernel.
        bugcheck: the bugcheck, None where the machine was running.
        traps: recognizes the trap frames of x86, None on x64.
    """

    def __init__(self, kernel: Kernel, bugcheck: BugCheck | None, traps: TrapFrames | None) -> None:
        self._memory = kernel.memory
        self._kernel_start = kernel.drivers.kernel_start
        self._bugcheck = bugcheck if bugcheck is not None and len(bugcheck.parameters) == 4 else None
        self._traps = traps
        symbols = kernel.symbols
        self._traps64 = TrapFrames64.from_symbols(symbols.member, symbols.size_of("_KTRAP_FRAME"))

    @property
    def traps64(self) -> TrapFrames64 | None:
        """Recognizes the trap frames of x64."""
        return self._traps64 if self._memory.pointer_size == 8 else None

    def find(self, stacks: tuple[StackView, ...]) -> ExceptionRegisters | None:
        """Return the registers at the exception; None where the bugcheck names none or the image lacks them.

        Args:
            stacks: those that the crashed thread may have been on.
        """
        bugcheck = self._bugcheck
        named = None if bugcheck is None else NAMED.get(bugcheck.code)
        if bugcheck is None or named is None:
            return None
        addresses = {
            number: bugcheck.parameters[number - 1]
            for number in (named.context, named.trap_frame, named.instruction)
            if number
        }
        found = None
        by = f"parameter {{}} of bugcheck {bugcheck.code:#x}"
        if named.context:
            found = self._of_context(
                addresses[named.context], stacks, f"the CONTEXT that {by.format(named.context)} names"
            )
        elif named.trap_frame:
            where = f"the trap frame that {by.format(named.trap_frame)} names"
            found = self._of_trap_frame(addresses[named.trap_frame], stacks, where)
        if found is None and named.instruction and addresses[named.instruction]:
            where = f"that has the instruction of {by.format(named.instruction)}"
            found = self._of_instruction(addresses[named.instruction], stacks, where)
        return found

    def _of_context(self, address: int, stacks: tuple[StackView, ...], source: str) -> ExceptionRegisters | None:
        size = self._memory.pointer_size
        data = self._memory.read(address, CONTEXT_BYTES[size]) if address >= self._kernel_start else None
        registers = None if data is None else registers_from_context(data, size)
        if registers is None:
            return None
        trap = next(self._traps_with(registers.ip, stacks, registers.sp), None)
        if trap is not None:
            return ExceptionRegisters(registers, trap.address, trap.found_at, source)
        return ExceptionRegisters(registers, registers.sp - size, address + CONTEXT_IP[size], source)

    def _of_trap_frame(self, address: int, stacks: tuple[StackView, ...], source: str) -> ExceptionRegisters | None:
        stack = next((each for each in stacks if each.holds(address)), None)
        trap = None if stack is None else self._read(stack, address, named=True)
        return None if trap is None or trap.user else self._of(trap, stacks, source)

    def _of_instruction(self, ip: int, stacks: tuple[StackView, ...], source: str) -> ExceptionRegisters | None:
        trap = next(self._traps_with(ip, stacks), None)
        return None if trap is None else self._of(trap, stacks, f"the trap frame {source}")

    def _of(self, trap: TrapFrame, stacks: tuple[StackView, ...], source: str) -> ExceptionRegisters:
        """Return the registers of a trap frame, or those of a CONTEXT made of it, which has more of them."""
        context = self._context_of(trap, stacks)
        registers = context or partial_registers(trap.ip, trap.sp, trap.bp, self._memory.pointer_size)
        return ExceptionRegisters(registers, trap.address, trap.found_at, source)

    def _context_of(self, trap: TrapFrame, stacks: tuple[StackView, ...]) -> Registers | None:
        """Find the CONTEXT that KiDispatchException made of a trap frame: on the stack, below it."""
        size = self._memory.pointer_size
        stack = next((each for each in stacks if each.holds(trap.address)), None)
        for slot in () if stack is None else stack.find_word(trap.ip, stack.limit, trap.address):
            data = self._memory.read(slot - CONTEXT_IP[size], CONTEXT_BYTES[size])
            registers = None if data is None else registers_from_context(data, size)
            if registers is not None and (registers.ip, registers.sp) == (trap.ip, trap.sp):
                return registers
        return None

    def _traps_with(self, ip: int, stacks: tuple[StackView, ...], sp: int | None = None) -> Iterator[TrapFrame]:
        """Yield the kernel-mode trap frames on stacks with an instruction pointer and, unless None, a stack pointer."""
        for stack in stacks:
            if self._memory.pointer_size == 4:
                found = iter(()) if self._traps is None else self._traps.find(stack, stack.limit, stack.base)
                traps: Iterator[TrapFrame | None] = (each for each in found if each.ip == ip)
            else:
                offset = 0 if self._traps64 is None else self._traps64.ip_offset
                slots = stack.find_word(ip, stack.limit, stack.base)
                traps = (self._read(stack, slot - offset) for slot in slots)
            yield from (each for each in traps if each is not None and not each.user and sp in (None, each.sp))

    def _read(self, stack: StackView, address: int, *, named: bool = False) -> TrapFrame | None:
        if self._memory.pointer_size == 4:
            return None if self._traps is None else self._traps.read(stack, address, marked=not named)
        return None if self._traps64 is None else self._traps64.read(stack, address)


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
