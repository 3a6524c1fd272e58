"""Unwinds x64 kernel stacks by unwind data and epilogues."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..formats.pe import ReadRva
from ..formats.unwind_info import FunctionTable, NoEntry, Operation, RuntimeFunction, UnwindInfo, read_unwind_info
from .frame import How
from .registers import STACK_POINTER, Registers, partial_registers
from .scan import FRAMES_BOUND, FROM_USER, CodeView, Found, Scanner, StackView, Walked

BYTES = 64
"""How many bytes of code are read for an epilogue: stack adjustment, pops of all registers, return."""

_POP, _POP_EXTENDED = range(0x58, 0x60), 0x41
_RETURNS = (b"\xc3", b"\xf3\xc3", b"\xc2")
_TAIL_JUMPS = (b"\xff\x25", b"\x48\xff\x25", b"\x48\xff\xe0")


@dataclass(frozen=True, slots=True)
class Epilogue:
    """The effect of the rest of an epilogue on the stack.

    RSP is set to the register `base` (None: RSP itself) plus `adjustment` bytes; then the registers with the numbers
    `pops` are popped.
    """

    base: int | None
    adjustment: int
    pops: tuple[int, ...]


def find_epilogue(code: bytes, frame_register: int) -> Epilogue | None:
    """Decode the code at an instruction pointer if it is the rest of an epilogue, else return None.

    Args:
        code: up to BYTES bytes from the instruction pointer.
        frame_register: the number of the function's frame register by its unwind data; 0 is none.
    """
    base, adjustment, at = _adjustment(code, frame_register)
    pops = []
    while at < len(code):
        if code[at] in _POP:
            pops.append(code[at] - _POP.start)
            at += 1
        elif code[at] == _POP_EXTENDED and code[at + 1 : at + 2] and code[at + 1] in _POP:
            pops.append(8 + code[at + 1] - _POP.start)
            at += 2
        else:
            break
    if code.startswith(_RETURNS, at) or code.startswith(_TAIL_JUMPS, at):
        return Epilogue(base, adjustment, tuple(pops))
    return None


def _adjustment(code: bytes, frame_register: int) -> tuple[int | None, int, int]:
    """Decode `add rsp, n` or `lea rsp, [frame register + n]`: base register, n, length of the instruction."""
    if code.startswith(b"\x48\x83\xc4"):
        return None, _signed(code[3:4]), 4
    if code.startswith(b"\x48\x81\xc4"):
        return None, _signed(code[3:7]), 7
    if frame_register and len(code) > 2 and code[0] == 0x48 + (frame_register >> 3) and code[1] == 0x8D:
        mode, target, source = code[2] >> 6, code[2] >> 3 & 7, code[2] & 7
        # R12 would need a SIB byte; compilers do not use it as frame register.
        if target == 4 and source == frame_register & 7 and source != 4 and mode in (1, 2):
            length = 1 if mode == 1 else 4
            return frame_register, _signed(code[3 : 3 + length]), 3 + length
    return None, 0, 0


def _signed(data: bytes) -> int:
    return int.from_bytes(data, "little", signed=True)


CHAIN_BOUND = 32
"""How many chained entries are followed; Windows' unwinder has the same limit (UNWIND_CHAIN_LIMIT)."""

ReadWord = Callable[[int], "int | None"]
"""Reads a pointer of the thread's stack."""

_ALL = 1 << 31  # larger than any prologue: all of it has run
_MACHINE_FRAME_RSP = 0x18  # RIP, CS, EFLAGS, RSP, SS; below them an error code if UNWIND_CODE.OpInfo is 1


@dataclass(frozen=True, slots=True)
class Unwound:
    """The registers in the caller, and the stack address `found_at` of its instruction pointer.

    `interrupted` is whether the caller was interrupted (by an interrupt or exception) and made no call.
    """

    registers: Registers
    found_at: int
    interrupted: bool = False


class _LostError(Exception):
    """The unwind data needs a register whose value is unknown."""


def leave_leaf(registers: Registers, word: ReadWord) -> Unwound | None:
    """Step out of a leaf function, which has no unwind data since it does not change the stack."""
    return _pop_return_address(registers, word)


def unwind(
    registers: Registers, word: ReadWord, read: ReadRva, function: RuntimeFunction, base: int, *, exact: bool
) -> Unwound | None:
    """Step out of a function; None where its unwind data or the stack cannot be read.

    Args:
        registers: the registers in the function.
        word: reads a word of the stack.
        read: reads the image.
        function: the function's entry in the function table.
        base: the image's virtual address.
        exact: whether the instruction pointer is the next instruction; False if it is from a return address.
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
                return _pop_return_address(_run_epilogue(epilogue, registers, word), word)
        done = offset if exact else _ALL
        frame = _frame_base(registers, info, done)
        for _ in range(CHAIN_BOUND):
            registers, machine_frame = _undo(registers, word, info, done, frame)
            if machine_frame is not None:
                return _leave_machine_frame(registers, word, machine_frame)
            if info.chained is None:
                return _pop_return_address(registers, word)
            following = read_unwind_info(read, info.chained.unwind_data)
            if following is None:
                return None
            # The prologue of a chained entry has run completely.
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
    """Undo the part of a prologue that has run; also return the OpInfo of a machine frame, which ends the unwinding."""
    for code in info.codes:
        if code.offset > done or code.operation is Operation.EPILOG:
            continue
        operation = code.operation
        if operation is Operation.PUSH_NONVOL:
            registers = _pop(registers, word, code.info)
        elif operation in (Operation.ALLOC_SMALL, Operation.ALLOC_LARGE):
            registers = registers.with_register(STACK_POINTER, registers.sp + code.operand)
        elif operation is Operation.SET_FPREG:
            value = registers.general[info.frame_register]
            if value is None:
                raise _LostError
            registers = registers.with_register(STACK_POINTER, value - info.frame_offset)
        elif operation in (Operation.SAVE_NONVOL, Operation.SAVE_NONVOL_FAR):
            registers = registers.with_register(code.info, word(frame + code.operand))
        elif operation is Operation.PUSH_MACHFRAME:
            return registers, code.info
    return registers, None


def _frame_base(registers: Registers, info: UnwindInfo, done: int) -> int:
    """Return the address to which the offsets of saved registers are relative, also in chained entries.

    A chained part of a function runs after the function has set the frame register, and its unwind data has the same
    frame register and offset (Microsoft, "x64 exception handling", UNW_FLAG_CHAININFO).
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


def _run_epilogue(epilogue: Epilogue, registers: Registers, word: ReadWord) -> Registers:
    base = registers.sp if epilogue.base is None else registers.general[epilogue.base]
    if base is None:
        raise _LostError
    registers = registers.with_register(STACK_POINTER, base + epilogue.adjustment)
    for number in epilogue.pops:
        registers = _pop(registers, word, number)
    return registers


def _pop(registers: Registers, word: ReadWord, number: int) -> Registers:
    return registers.with_register(number, word(registers.sp)).with_register(STACK_POINTER, registers.sp + 8)


def _pop_return_address(registers: Registers, word: ReadWord) -> Unwound | None:
    ip = word(registers.sp)
    return None if ip is None else Unwound(registers.with_ip_sp(ip, registers.sp + 8), registers.sp)


def _leave_machine_frame(registers: Registers, word: ReadWord, info: int) -> Unwound | None:
    at = registers.sp + 8 * (info & 1)
    ip, sp = word(at), word(at + _MACHINE_FRAME_RSP)
    return None if ip is None or sp is None else Unwound(registers.with_ip_sp(ip, sp), at, interrupted=True)


@dataclass(frozen=True, slots=True)
class UnwindTable:
    """The function table of a module, its virtual address `base`, and a function that reads its image."""

    base: int
    read: ReadRva
    table: FunctionTable


UnwindTables = Callable[[int], "UnwindTable | None"]
"""Returns the table of the module that contains an address; None where there is none."""


def walk_x64(start: Registers, stack: StackView, code: CodeView, tables: UnwindTables, *, exact: bool = True) -> Walked:
    """Walk a stack from the innermost frame outwards.

    `exact` is whether `start.ip` is the next instruction; False if it is a return address.
    """
    frames = [Found(start.ip, How.SAVED, start.sp)]
    scanner = Scanner(stack, code)
    registers = start
    while len(frames) < FRAMES_BOUND:
        step = _step(registers, stack, tables, exact=exact)
        ending = None if step is None else _describe_ending(step, registers, stack, code)
        if ending is not None:
            return Walked(tuple(frames), ending)
        if step is None or not _is_plausible(step, registers, stack, code):
            found = scanner.next_frames(registers.ip, max(registers.sp, stack.limit))
            if not found:
                return Walked(tuple(frames), stack.searched)
            frames += found
            registers, exact = partial_registers(found[-1].ip, found[-1].address or 0, None, 8), False
            continue
        registers, exact = step.registers, step.interrupted
        how = How.INTERRUPTED if step.interrupted else How.UNWOUND
        follows = None if step.interrupted else code.call_before(registers.ip).follows
        frames.append(Found(registers.ip, how, registers.sp, step.found_at, follows_call=follows))
    return Walked(tuple(frames[:FRAMES_BOUND]), f"{FRAMES_BOUND} frames, no more are followed")


def _step(registers: Registers, stack: StackView, tables: UnwindTables, *, exact: bool) -> Unwound | None:
    module = tables(registers.ip)
    if module is None:
        return None
    # A call that never returns may be the last instruction of its function; its return address is outside.
    entry = module.table.find(registers.ip - module.base - (not exact))
    if entry is NoEntry.LEAF and exact:
        return leave_leaf(registers, stack.word)
    if isinstance(entry, NoEntry):
        return None
    at = registers if exact else replace(registers, ip=registers.ip - 1)
    return unwind(at, stack.word, module.read, entry, module.base, exact=exact)


def _describe_ending(step: Unwound, before: Registers, stack: StackView, code: CodeView) -> str | None:
    """Return the ending of the walk if a step has left the kernel or reached the outermost frame, else None."""
    after = step.registers
    if after.sp <= before.sp or not stack.limit < after.sp <= stack.base:
        return None if not step.interrupted or code.is_code(after.ip) else FROM_USER
    if not after.ip:
        return "the outermost frame"
    return None


def _is_plausible(step: Unwound, before: Registers, stack: StackView, code: CodeView) -> bool:
    after = step.registers
    if not before.sp < after.sp <= stack.base or not code.is_code(after.ip):
        return False
    return step.interrupted or code.call_before(after.ip).follows is not False
