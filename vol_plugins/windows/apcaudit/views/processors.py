"""The processors' control blocks (_KPRCB): which threads run, which comes next, and the IRQL that a crash saved."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..memory import Memory
from ..structures import read_member
from ..symbols import KernelSymbols

PROCESSOR_BOUND = 2048
"""How many entries of KiProcessorBlock are looked at; Windows 11 runs on at most 2048 logical processors."""

_HIGHEST_IRQL = {4: 31, 8: 15}  # HIGH_LEVEL by size of a pointer (WDK, wdm.h)


@dataclass(frozen=True, slots=True)
class Processor:
    """One _KPRCB: its number, virtual address, and the _ETHREADs it names (0: none, None: unreadable).

    `saved_irql` is DebuggerSavedIRQL, the IRQL before the crash or the debugger stopped the processor. Windows XP
    keeps none (WinDbg's help on `!irql`: Server 2003 and later), and _KPCR.Irql is no substitute, since
    KeBugCheck itself raises it: there it stays None.
    """

    number: int
    address: int
    current: int | None
    next: int | None
    idle: int | None
    saved_irql: int | None = None


def read_processors(memory: Memory, symbols: KernelSymbols, known: Iterable[int] = ()) -> tuple[Processor, ...]:
    """Read the _KPRCBs of KiProcessorBlock.

    Args:
        memory: the image.
        symbols: the kernel's.
        known: virtual addresses of _KPRCBs that something else in the image names, a minidump's header say.
    """
    processors: dict[int, Processor] = {}
    array = symbols.address("KiProcessorBlock")
    count = _count(memory, symbols) or 0
    for number in range(PROCESSOR_BOUND if array is not None else 0):
        address = memory.pointer((array or 0) + number * memory.pointer_size)
        processor = _read(memory, symbols, address) if address else None
        if processor is not None and processor.number == number:
            processors[processor.address] = processor
        elif number >= count:
            # A null or somebody else's data follows the last entry. The number of entries may be damaged, too.
            break
    for address in known:
        processor = _read(memory, symbols, address) if address not in processors else None
        if processor is not None:
            processors[address] = processor
    return tuple(processors.values())


def lacking(memory: Memory, symbols: KernelSymbols, processors: Iterable[Processor]) -> str | None:
    """Say how many processors were not read that the kernel counts; None where none is missing or nobody knows.

    Of a minidump nothing is said: it holds one processor.
    """
    count = None if memory.partial else _count(memory, symbols)
    if count is None:
        return None
    missing = len(set(range(count)) - {processor.number for processor in processors})
    if not missing:
        return None
    return (
        f"KiProcessorBlock leads to no _KPRCB for {missing} of {count} processors: threads that only they run may be"
        " missing"
    )


def _count(memory: Memory, symbols: KernelSymbols) -> int | None:
    """Read KeNumberProcessors: a byte, and a ULONG in kernels that number processors by one (since 7)."""
    symbol, number = symbols.address("KeNumberProcessors"), symbols.member("_KPRCB", "Number")
    if symbol is None or number is None:
        return None
    data = memory.read(symbol, 4 if number.size == 4 else 1)
    count = None if data is None else int.from_bytes(data, "little")
    return count if count is not None and count <= PROCESSOR_BOUND else None


def _read(memory: Memory, symbols: KernelSymbols, address: int) -> Processor | None:
    def member(name: str) -> int | None:
        return read_member(memory, symbols, "_KPRCB", name, address)

    number, current, idle = member("Number"), member("CurrentThread"), member("IdleThread")
    if number is None or not current or current % memory.pointer_size or not memory.is_canonical(current):
        return None
    irql = member("DebuggerSavedIRQL")
    if irql is not None and not 0 <= irql <= _HIGHEST_IRQL[memory.pointer_size]:
        irql = None
    return Processor(number, address, current, member("NextThread"), idle, irql)
