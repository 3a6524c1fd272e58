"""One step out of an x64 function by its unwind data, as RtlVirtualUnwind takes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..drivers.pe_header import ReadRva
from .epilogue import BYTES, Epilogue, find_epilogue
from .registers import STACK_POINTER, Registers
from .unwind_info import Operation, RuntimeFunction, UnwindInfo, read_unwind_info

CHAIN_BOUND = 32
"""How many chained entries are followed, as many as Windows itself does (UNWIND_CHAIN_LIMIT of its unwinder)."""

ReadWord = Callable[[int], "int | None"]
"""Reads a pointer of the thread's stack."""

_ALL = 1 << 31  # more bytes than a prologue has
_MACHINE_FRAME_RSP = 0x18  # RIP, CS, EFLAGS, RSP, SS, in front of them an error code where the info says so


@dataclass(frozen=True, slots=True)
class Unwound:
    """The registers in the caller, and where on the stack its instruction pointer was.

    `interrupted` is whether an interrupt or exception left it and not a call.
    """

    registers: Registers
    found_at: int
    interrupted: bool = False


class _LostError(Exception):
    """Unwind data asks for a register or memory that is not known."""


def leave_leaf(registers: Registers, word: ReadWord) -> Unwound | None:
    """Step out of a function that has no unwind data since it leaves the stack alone."""
    return _returned(registers, word)


def unwind(
    registers: Registers, word: ReadWord, read: ReadRva, function: RuntimeFunction, base: int, *, exact: bool
) -> Unwound | None:
    """Step out of a function; None where its unwind data or the stack cannot be read.

    Args:
        registers: in the function.
        word: reads the stack.
        read: reads the image.
        function: its entry of the function table.
        base: the image's virtual address.
        exact: whether the instruction pointer is that of an instruction about to run, no return address.
    """
    offset = registers.ip - base - function.begin
    info = read_unwind_info(read, function.unwind_data)
    if info is None:
        return None
    try:
        if exact and offset >= info.prolog_size:
            code = _code(read, registers.ip - base)
            epilogue = find_epilogue(code, info.frame_register)
            if epilogue is not None:
                return _returned(_through(epilogue, registers, word), word)
        done = offset if exact else _ALL
        frame = _frame(registers, info, done)
        for _ in range(CHAIN_BOUND):
            registers, machine_frame = _undo(registers, word, info, done, frame)
            if machine_frame is not None:
                return _machine_frame(registers, word, machine_frame)
            if info.chained is None:
                return _returned(registers, word)
            following = read_unwind_info(read, info.chained.unwind_data)
            if following is None:
                return None
            # A chained entry's prologue has run as a whole.
            info, done = following, _ALL
    except _LostError:
        pass
    return None


def _code(read: ReadRva, rva: int) -> bytes:
    for length in (BYTES, 16):
        code = read(rva, length)
        if code is not None:
            return code
    return b""


def _undo(
    registers: Registers, word: ReadWord, info: UnwindInfo, done: int, frame: int
) -> tuple[Registers, int | None]:
    """Undo what of a prologue has run; also give the info of a machine frame that ends it."""
    for code in info.codes:
        if code.offset > done or code.operation is Operation.EPILOG:
            continue
        operation = code.operation
        if operation is Operation.PUSH_NONVOL:
            registers = _pop(registers, word, code.info)
        elif operation in (Operation.ALLOC_SMALL, Operation.ALLOC_LARGE):
            registers = registers.having(STACK_POINTER, registers.sp + code.operand)
        elif operation is Operation.SET_FPREG:
            value = registers.general[info.frame_register]
            if value is None:
                raise _LostError
            registers = registers.having(STACK_POINTER, value - info.frame_offset)
        elif operation in (Operation.SAVE_NONVOL, Operation.SAVE_NONVOL_FAR):
            registers = registers.having(code.info, word(frame + code.operand))
        elif operation is Operation.PUSH_MACHFRAME:
            return registers, code.info
    return registers, None


def _frame(registers: Registers, info: UnwindInfo, done: int) -> int:
    """Return what the offsets of saved registers count from, those of chained entries too.

    A part of a function that is chained to it runs after the function has set the frame register, and has the same
    frame register and offset in its unwind data (Microsoft, "x64 exception handling", UNW_FLAG_CHAININFO).
    """
    if not info.frame_register:
        return registers.sp
    established = any(code.operation is Operation.SET_FPREG and code.offset <= done for code in info.codes)
    if done < info.prolog_size and not established and info.chained is None:
        return registers.sp
    value = registers.general[info.frame_register]
    if value is None:
        raise _LostError
    return value - info.frame_offset


def _through(epilogue: Epilogue, registers: Registers, word: ReadWord) -> Registers:
    base = registers.sp if epilogue.base is None else registers.general[epilogue.base]
    if base is None:
        raise _LostError
    registers = registers.having(STACK_POINTER, base + epilogue.adjustment)
    for number in epilogue.pops:
        registers = _pop(registers, word, number)
    return registers


def _pop(registers: Registers, word: ReadWord, number: int) -> Registers:
    return registers.having(number, word(registers.sp)).having(STACK_POINTER, registers.sp + 8)


def _returned(registers: Registers, word: ReadWord) -> Unwound | None:
    ip = word(registers.sp)
    return None if ip is None else Unwound(registers.at(ip, registers.sp + 8), registers.sp)


def _machine_frame(registers: Registers, word: ReadWord, info: int) -> Unwound | None:
    at = registers.sp + 8 * (info & 1)
    ip, sp = word(at), word(at + _MACHINE_FRAME_RSP)
    return None if ip is None or sp is None else Unwound(registers.at(ip, sp), at, interrupted=True)
