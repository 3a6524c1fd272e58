"""Unwinds x64 kernel stacks by unwind data and epilogues."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..formats.pe import ReadRva
from ..formats.unwind_info import FunctionTable, NoEntry, Operation, RuntimeFunction, UnwindInfo, read_unwind_info
from . import How, StackView
from .epilogue import CODE_BYTES, EPILOGUE_BYTES, Epilogue, find_epilogue, find_function_end
from .registers import (
    FRAME_POINTER,
    STACK_POINTER,
    ExceptionRegisters,
    Registers,
    TrapFrame,
    TrapFrames64,
    came_from_kernel,
    partial_registers,
)
from .scan import FRAMES_BOUND, FROM_USER, CallBefore, CodeView, FoundFrame, Leaving, Link, Scanner, Walked

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
    for length in (EPILOGUE_BYTES, 16):
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


def walk_x64(
    start: Registers,
    stack: StackView,
    code: CodeView,
    tables: UnwindTables,
    *,
    exact: bool = True,
    called: bool = True,
    traps: TrapFrames64 | None = None,
    exception: ExceptionRegisters | None = None,
) -> Walked:
    """Walk a stack from the innermost frame outwards.

    Args:
        start: the registers in the innermost frame.
        stack: the stack that they lead to.
        code: the code of the modules.
        tables: the unwind data of the modules.
        exact: whether `start.ip` is the next instruction; False if it is a return address.
        called: whether the function at `start.ip` was called by that name; False where the kernel goes on in the middle
            of one after it has changed stacks, at a label that has a name of its own.
        traps: recognizes trap frames.
        exception: the registers at the exception that the innermost frames handle, where they are known.
    """
    return _Walk(stack, code, tables, traps, exception).run(start, exact=exact, called=called)


@dataclass(frozen=True, slots=True)
class _Step:
    """The next frames and the registers in the last of them."""

    frames: list[FoundFrame]
    registers: Registers
    exact: bool = False


class _Walk:
    def __init__(
        self,
        stack: StackView,
        code: CodeView,
        tables: UnwindTables,
        traps: TrapFrames64 | None,
        exception: ExceptionRegisters | None,
    ) -> None:
        self._stack = stack
        self._code = code
        self._tables = tables
        self._traps = traps
        self._exception = exception
        self._scanner = Scanner(stack, code, lambda sp: self._trap_at(sp) is not None)

    def run(self, start: Registers, *, exact: bool, called: bool) -> Walked:
        frames = [FoundFrame(start.ip, How.SAVED, start.sp)]
        registers = start
        while len(frames) < FRAMES_BOUND:
            function = (registers.ip - (not exact)) if called or len(frames) > 1 else 0
            following = self._next(registers, function, certain=frames[-1].certain, exact=exact)
            following = self._through_exception(following)
            if isinstance(following, str):
                return Walked(tuple(frames), following)
            if isinstance(following, Leaving):
                return Walked(tuple(frames), "", following)
            frames += following.frames
            registers, exact = following.registers, following.exact
        return Walked(tuple(frames[:FRAMES_BOUND]), f"{FRAMES_BOUND} frames, no more are followed")

    def _next(self, registers: Registers, function: int, *, certain: bool, exact: bool) -> _Step | Leaving | str:
        """Return the next frames, where they are on another stack, or how the walk ends.

        `function` is an address inside the current function, 0 if that is unknown.
        """
        followed = self._by_unwind_data(registers, exact=exact)
        if followed is None and not exact:
            followed = self._by_trap_frame(registers, certain=certain)
        left = None if followed is not None else find_function_end(self._code.read_ahead(registers.ip, CODE_BYTES))
        if left is not None and left.whole:
            followed = self._by_function_end(registers, left.epilogue, exact=exact)
        if followed is not None:
            return followed
        end = None if self._exception is None else self._exception.top
        known = function if self._code.is_code(function) else 0
        # What an epilogue adds and pops is the function's own part of the stack, also where the rest of it is unknown.
        part = 0 if left is None or left.whole or exact or left.epilogue.base is not None else left.epilogue.size
        found = self._scanner.next_frames(known, max(registers.sp + part, self._stack.limit), end)
        if found:
            return _Step(found, partial_registers(found[-1].ip, found[-1].address or 0, None, 8))
        return self._by_switch() or self._stack.searched

    def _through_exception(self, following: _Step | Leaving | str) -> _Step | Leaving | str:
        """Return what comes next, or the exception's registers where that is their frame or beyond it."""
        exception = self._exception
        if exception is None or (isinstance(following, _Step) and following.registers.sp <= exception.top):
            return following
        self._exception = None
        registers = exception.registers
        frame = FoundFrame(registers.ip, How.INTERRUPTED, registers.sp, exception.found_at)
        return _Step([frame], registers, exact=True)

    def _by_unwind_data(self, registers: Registers, *, exact: bool) -> _Step | Leaving | str | None:
        step = _step(registers, self._stack, self._tables, exact=exact)
        if step is None:
            return None
        after = step.registers
        if after.sp <= registers.sp or not self._stack.limit < after.sp <= self._stack.base:
            if self._stack.is_on_other(after.sp) and self._code.is_code(after.ip):
                return self._leave(after, step.found_at, interrupted=step.interrupted)
            return FROM_USER if step.interrupted and not self._code.is_code(after.ip) else None
        if not after.ip:
            return "the outermost frame"
        if step.interrupted:
            # Code outside of all modules can be interrupted too.
            if not self._code.is_code(after.ip) and not came_from_kernel(self._stack, step.found_at):
                return None
            return _Step([FoundFrame(after.ip, How.INTERRUPTED, after.sp, step.found_at)], after, exact=True)
        follows = self._code.call_before(after.ip).follows
        if follows is False or not self._code.is_code(after.ip):
            return None
        return _Step([FoundFrame(after.ip, How.UNWOUND, after.sp, step.found_at, follows_call=follows)], after)

    def _by_trap_frame(self, registers: Registers, *, certain: bool) -> _Step | Leaving | str | None:
        """Step to what was interrupted: where the frame is that of entry code, its stack pointer is the trap frame."""
        trap = self._trap_at(registers.sp)
        if trap is None:
            return None
        if trap.user:
            return FROM_USER
        after = partial_registers(trap.ip, trap.sp, trap.bp, 8)
        if not self._stack.holds(trap.sp):
            return Leaving(after, How.INTERRUPTED, trap.found_at, certain=certain)
        return _Step([FoundFrame(trap.ip, How.INTERRUPTED, trap.sp, trap.found_at, certain=certain)], after, exact=True)

    def _trap_at(self, sp: int) -> TrapFrame | None:
        trap = None if self._traps is None else self._traps.read(self._stack, sp)
        if trap is None:
            return None
        # The entry from user mode is known where the thread is; other such frames are left over.
        valid = self._stack.entry in (None, sp) if trap.user else self._code.is_code(trap.ip)
        return trap if valid else None

    def _by_function_end(self, registers: Registers, epilogue: Epilogue, *, exact: bool) -> _Step | None:
        """Step to where the epilogue behind the instruction pointer returns; None where that is no caller."""
        word = self._stack.word
        try:
            step = _pop_return_address(_run_epilogue(epilogue, registers, word), word)
        except _LostError:
            step = None
        if step is None or not registers.sp < step.registers.sp <= self._stack.top:
            return None
        ip, sp = step.registers.ip, step.registers.sp
        call = self._code.call_before(ip) if self._code.is_code(ip) else CallBefore(False)
        link = self._scanner.link(registers.ip - (not exact), ip, call)
        if call.follows is False or link is Link.CONTRADICTS:
            return None
        # The next instruction may be in the prologue, so that only a call of the very function proves the frame.
        if exact and not (call.follows and link in (Link.CONFIRMS, Link.SUGGESTS)):
            return None
        bp = step.registers.bp if FRAME_POINTER in epilogue.pops else None
        frame = FoundFrame(ip, How.SCANNED, sp, step.found_at, follows_call=call.follows)
        return _Step([frame], partial_registers(ip, sp, bp, 8))

    def _by_switch(self) -> Leaving | None:
        """Step to where the change to this stack came from; None where that is not known."""
        switch = self._stack.switch
        if switch is None or switch.ip_at is None:
            return None
        ip, sp = self._stack.word(switch.ip_at), self._stack.word(switch.sp_at)
        if ip is None or sp is None or not self._code.is_code(ip) or not self._stack.is_on_other(sp):
            return None
        return self._leave(partial_registers(ip, sp, None, 8), switch.ip_at)

    def _leave(self, registers: Registers, found_at: int, *, interrupted: bool = True) -> Leaving:
        """Return where the walk goes on on another stack."""
        switch = self._stack.switch
        if switch is None or found_at != switch.ip_at:
            return Leaving(registers, How.INTERRUPTED if interrupted else How.UNWOUND, found_at, exact=interrupted)
        # What changed stacks did so with a call, or goes on where a routine begins (KiDispatchInterruptContinue).
        follows = self._code.call_before(registers.ip).follows
        exact = not follows if follows is not None else self._code.function(registers.ip) == registers.ip
        return Leaving(registers, How.SWITCHED, found_at, exact=exact)


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
