"""The frames of an x64 stack: by unwind data, and by a search of the stack where that cannot be had."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..drivers.pe_header import ReadRva
from .frame import How
from .function_table import FunctionTable, NoEntry
from .registers import Registers, only
from .scan import Scanner
from .surroundings import FRAMES_BOUND, FROM_USER, CodeView, Found, StackView, Walked
from .unwind import Unwound, leave_leaf, unwind


@dataclass(frozen=True, slots=True)
class UnwindTable:
    """A module's function table and what reads the module; `base` is its virtual address."""

    base: int
    read: ReadRva
    table: FunctionTable


UnwindTables = Callable[[int], "UnwindTable | None"]
"""Gives the table of the module that holds an address."""


def walk_x64(start: Registers, stack: StackView, code: CodeView, tables: UnwindTables, *, exact: bool = True) -> Walked:
    """Walk outwards from registers; `exact` is whether they were saved, and not concluded from a return address."""
    frames = [Found(start.ip, How.SAVED, start.sp)]
    scanner = Scanner(stack, code)
    registers = start
    while len(frames) < FRAMES_BOUND:
        step = _step(registers, stack, tables, exact=exact)
        ending = None if step is None else _ending(step, registers, stack, code)
        if ending is not None:
            return Walked(tuple(frames), ending)
        if step is None or not _believable(step, registers, stack, code):
            found = scanner.next_frames(registers.ip, max(registers.sp, stack.limit))
            if not found:
                return Walked(tuple(frames), stack.searched)
            frames += found
            registers, exact = only(found[-1].ip, found[-1].address or 0, None, 8), False
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
    # A call that does not return may be the last instruction of its function.
    entry = module.table.find(registers.ip - module.base - (not exact))
    if entry is NoEntry.LEAF and exact:
        return leave_leaf(registers, stack.word)
    if isinstance(entry, NoEntry):
        return None
    at = registers if exact else replace(registers, ip=registers.ip - 1)
    return unwind(at, stack.word, module.read, entry, module.base, exact=exact)


def _ending(step: Unwound, before: Registers, stack: StackView, code: CodeView) -> str | None:
    """Say where a step has left the kernel or reached the stack's end."""
    after = step.registers
    if after.sp <= before.sp or not stack.limit < after.sp <= stack.base:
        return None if not step.interrupted or code.is_code(after.ip) else FROM_USER
    if not after.ip:
        return "the outermost frame"
    return None


def _believable(step: Unwound, before: Registers, stack: StackView, code: CodeView) -> bool:
    after = step.registers
    if not before.sp < after.sp <= stack.base or not code.is_code(after.ip):
        return False
    return step.interrupted or code.call_before(after.ip).follows is not False
