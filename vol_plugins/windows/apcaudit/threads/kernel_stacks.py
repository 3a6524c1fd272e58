"""The kernel stacks that a thread runs on: its own, those that it grew out of, and its processor's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .. import windows
from ..image.structures import read_member
from ..image.symbols import KernelSymbols
from ..kernel import Kernel
from ..members import ThreadMembers
from ..unwind import StackKind, StackRange

SEGMENTS_BOUND = 8
"""How many stacks of one thread are read: each win32k callout may add one."""

# The structure at InitialStack, and its member for the base of its own stack: since 8; of Vista and 7 (public PDBs).
_CONTROLS = (("_KSTACK_CONTROL", "StackBase"), ("_KERNEL_STACK_CONTROL", "Current.StackBase"))
_PREVIOUS = ("StackBase", "StackLimit", "InitialStack", "KernelStack")

# Size of a processor's stacks where the kernel has no variable for it: KERNEL_STACK_SIZE (WDK, ntddk.h).
_STACK_SIZE = {4: 0x3000, 8: 0x6000}

# Members of _KPRCB that point to its stacks (public PDBs), and the variable with the size. They are the bases, but on
# x64 DpcStack and ExceptionStack are where the stack pointer begins, 50h bytes below: decompiled KiInitializeKernel of
# Windows 10 and 11, and so in all 16 processors of a genuine minidump of 19041.
_PROCESSOR_STACKS = (
    (StackKind.DPC, "DpcStack", "KeKernelStackSize"),
    (StackKind.INTERRUPT, "IsrStack", "KeIsrStackSize"),
    (StackKind.EXCEPTION, "ExceptionStack", "KeKernelStackSize"),
)


@dataclass(frozen=True, slots=True)
class Segment:
    """A stack of a thread: its range, and what its structure at InitialStack says of the one that it grew out of.

    `initial` is InitialStack, 0 where it is unknown. `previous_sp` is the stack pointer on the previous stack, 0 where
    there is none.
    """

    limit: int
    base: int
    initial: int
    previous_sp: int = 0


class StackSegments:
    """Reads the stacks of threads by the structure at InitialStack (KeExpandKernelStackAndCallout, win32k callouts)."""

    def __init__(self, kernel: Kernel) -> None:
        self._memory = kernel.memory
        self._control = _stack_control(kernel.symbols)

    def read(self, members: ThreadMembers) -> Iterator[Segment]:
        """Yield the stack in use, then those that it grew out of."""
        limit, base, initial = members.stack_limit, members.stack_base, members.initial_stack
        for _ in range(SEGMENTS_BOUND):
            if not base or not limit or not limit < base or base % self._memory.pointer_size:
                return
            own, *before = (
                (0, 0, 0, 0, 0)
                if not initial or self._control is None
                else (self._memory.pointer(initial + offset) or 0 for offset in self._control)
            )
            # It is such a structure only if it names the base of its own stack.
            grown = own == base
            yield Segment(limit, base, initial or 0, before[3] if grown and before[0] else 0)
            if not grown:
                return
            base, limit, initial, _ = before


def _stack_control(symbols: KernelSymbols) -> tuple[int, ...] | None:
    """Return offsets from InitialStack: of this stack's base, then of the previous one's members in their order.

    None where the symbols lack the structure.
    """
    for structure, own in _CONTROLS:
        members = [symbols.member(structure, path) for path in (own, *(f"Previous.{name}" for name in _PREVIOUS))]
        if None not in members:
            return tuple(member.offset for member in members if member is not None)
    return None


def read_processor_stacks(kernel: Kernel, prcb: int) -> tuple[StackRange, ...]:
    """Read where the stacks of a processor are.

    Args:
        kernel: the image's.
        prcb: the virtual address of the processor's _KPRCB.
    """
    ranges = []
    for kind, member, variable in _PROCESSOR_STACKS:
        pointer = read_member(kernel.memory, kernel.symbols, "_KPRCB", member, prcb)
        if pointer and not pointer % kernel.memory.pointer_size and pointer >= kernel.drivers.kernel_start:
            base = -(-pointer // windows.PAGE_SIZE) * windows.PAGE_SIZE
            ranges.append(StackRange(kind, base - _stack_size(kernel, variable), base))
    return tuple(ranges)


def _stack_size(kernel: Kernel, variable: str) -> int:
    symbol = kernel.symbols.address(variable)
    data = None if symbol is None else kernel.memory.read(symbol, 4)
    size = 0 if data is None else int.from_bytes(data, "little")
    plausible = 0 < size <= windows.STACK_BOUND and not size % windows.PAGE_SIZE
    return size if plausible else _STACK_SIZE[kernel.memory.pointer_size]
