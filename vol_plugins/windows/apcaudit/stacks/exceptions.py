"""The registers at the exception that stopped the machine: from the CONTEXT or trap frame that the bugcheck names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..kernel import Kernel
from ..model import BugCheck
from ..unwind.registers import (
    CONTEXT_BYTES,
    CONTEXT_IP,
    ExceptionRegisters,
    Registers,
    partial_registers,
    registers_from_context,
)
from ..unwind.stack_view import StackView
from ..unwind.traps import TrapFrame, TrapFrames64
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
