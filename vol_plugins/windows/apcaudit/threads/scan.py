"""The search of the whole physical layer for threads and APCs, and its result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from volatility3.framework import constants, interfaces

from ..formats.layout import Layout, Member, is_number
from ..image import Memory
from ..image.page_tables import kernel_addresses
from ..image.symbols import KernelSymbols
from ..kernel import Kernel
from ..windows import PAGE_SIZE
from .pool_scan import (
    NO_PROCESS,
    NOTHING,
    OPEN,
    THREAD,
    ApcFinder,
    ApcShape,
    ThreadEvidence,
    ThreadFinder,
    ThreadShape,
    Verdict,
)


@dataclass(slots=True)
class Scanned:
    """What the scan found: threads by virtual address, and physical KAPC addresses by KAPC.Thread.

    `unmapped` counts threads that no kernel address maps: their pages have been freed. `without_process` counts
    candidates that would be threads if they named a process. `cut_short` is whether HIT_BOUND ended the search.
    """

    threads: dict[int, int] = field(default_factory=dict)
    apcs: dict[int, list[int]] = field(default_factory=dict)
    unmapped: int = 0
    without_process: int = 0
    cut_short: bool = False

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out, and why."""
        texts = (
            (self.cut_short, "the scan found more than it looks at: threads and APCs may be missing"),
            (self.unmapped, f"{self.unmapped} threads of the scan are left out: no kernel address maps them"),
            (self.without_process, f"{self.without_process} candidates of the scan name no process and are left out"),
        )
        return tuple(text for holds, text in texts if holds)


HIT_BOUND = 1 << 20
"""How many candidates are looked at; no machine has more threads and APCs, but a hostile image may."""

_OPTIONAL_HEADERS = 0xA0
"""Bytes of all optional object headers together, at most: process 16, quota 32, handle 16, name 32, creator 32,
audit 16, extended 16 on x64 (_OBJECT_HEADER_*_INFO in the public PDBs; ObpInfoMaskToOffset)."""

_SIGNAL_STATE = 4
"""Where _DISPATCHER_HEADER has SignalState, on x86 and on x64 (WDK, wdm.h): behind four bytes of type and flags."""

# Lists of a thread that are usually empty: APCs, mutants, timers, IRPs, and the threads that wait for it.
_RINGS = (
    "Tcb.ApcState.ApcListHead[0].Flink",
    "Tcb.ApcState.ApcListHead[1].Flink",
    "Tcb.Header.WaitListHead.Flink",
    "Tcb.MutantListHead.Flink",
    "ActiveTimerListHead.Flink",
    "IrpList.Flink",
)
_BACKS = ("Tcb.SchedulerApc.Thread", "Tcb.SuspendApc.Thread", "Tcb.WaitBlock[0].Thread")


class _Scanner(interfaces.layers.ScannerInterface):
    """Passes each run of bytes that vol reads to both finders."""

    _required_framework_version = (2, 0, 0)

    def __init__(self, threads: ThreadFinder, apcs: ApcFinder) -> None:
        super().__init__()
        self._threads = threads
        self._apcs = apcs

    def __call__(self, data: bytes, data_offset: int) -> Iterator[tuple[Verdict | None, int, int | None]]:
        """Yield (verdict, physical, virtual address) of threads, and (None, physical address, KAPC.Thread) of KAPCs."""
        limit = self.chunk_size
        yield from self._threads(data, data_offset, limit)
        for physical, thread in self._apcs(data, data_offset, limit):
            yield None, physical, thread


def scan(
    context: interfaces.context.ContextInterface, kernel: Kernel, progress: constants.ProgressCallback = None
) -> Scanned:
    """Search the whole physical layer; `progress` is called with percentages."""
    memory, symbols, layout = kernel.memory, kernel.symbols, kernel.layout
    kernel_start, processes = kernel.drivers.kernel_start, kernel.processes
    # A thread whose lists are all in use is recognised by the pointer to one of these processes.
    listed = frozenset(process.address for process in processes.listed())
    shape = thread_shape(memory, symbols, layout, kernel_start)
    judge = ThreadEvidence(shape, processes.is_object)
    apcs = ApcFinder(apc_shape(memory, symbols, layout, kernel_start))
    scanner = _Scanner(ThreadFinder(shape, judge, listed), apcs)
    scanned = Scanned()

    def record(verdict: Verdict, physical: int, address: int, recovered: int | None) -> None:
        """Record a candidate at a virtual address; `recovered` is that address where the candidate points to itself."""
        if verdict is OPEN:
            data, _ = memory.read_sparse(address, shape.size)
            verdict = judge(data, 0, recovered)
        if verdict is THREAD:
            scanned.threads.setdefault(address, physical)
        elif verdict is NO_PROCESS:
            scanned.without_process += 1

    # Threads whose own pointers name an address that maps other memory, and candidates without such pointers.
    mapped_elsewhere: list[int] = []
    unaddressed: list[tuple[Verdict, int]] = []
    hits = memory.physical_layer.scan(context, scanner, progress)
    for number, (verdict, physical, value) in enumerate(hits):
        if number == HIT_BOUND:
            scanned.cut_short = True
            break
        if verdict is None:
            scanned.apcs.setdefault(value, []).append(physical)
        elif verdict is NOTHING:
            continue
        elif value is None:
            unaddressed.append((verdict, physical))
        elif memory.physical(value) == physical:
            record(verdict, physical, value, value)
        elif verdict is THREAD:
            mapped_elsewhere.append(value)
    pages = kernel_addresses(memory, (physical for _, physical in unaddressed), kernel_start)
    for verdict, physical in unaddressed:
        page = pages.get(physical & ~(PAGE_SIZE - 1))
        if page is not None:
            record(verdict, physical, page + physical % PAGE_SIZE, None)
        elif verdict is THREAD:
            scanned.unmapped += 1
    # A copy of a thread that was found is not worth a note.
    scanned.unmapped += sum(address not in scanned.threads for address in mapped_elsewhere)
    return scanned


def thread_shape(memory: Memory, symbols: KernelSymbols, layout: Layout, kernel_start: int) -> ThreadShape:
    """Read from the symbol table the members of _ETHREAD that the search compares."""
    pointer = memory.pointer_size
    alignment = 2 * pointer  # of pool blocks (WDK, ExAllocatePoolWithTag)
    header = symbols.size_of("_POOL_HEADER") or alignment
    body = _offset(symbols, "_OBJECT_HEADER", "Body") or 0
    tag = _offset(symbols, "_POOL_HEADER", "PoolTag")
    start = -(-(header + body) // alignment) * alignment
    size = layout.thread.size

    def first(*paths: str) -> Member | None:
        member = next((each for path in paths if (each := symbols.member("_ETHREAD", path)) is not None), None)
        return member if member is not None and _fits(member, size) else None

    def offsets(paths: tuple[str, ...], length: int) -> tuple[int, ...]:
        found = (_offset(symbols, "_ETHREAD", path) for path in paths)
        return tuple(each for each in found if each is not None and 0 <= each <= size - length)

    block_size = symbols.member("_POOL_HEADER", "BlockSize")
    owners = first("Tcb.Process", "ThreadsProcess"), first("Tcb.ApcState.Process")
    return ThreadShape(
        pointer_size=pointer,
        alignment=alignment,
        size=size,
        type=_offset(symbols, "_ETHREAD", "Tcb.Header.Type") or 0,
        signal_state=_offset(symbols, "_ETHREAD", "Tcb.Header.SignalState") or _SIGNAL_STATE,
        owners=tuple(each for each in owners if each is not None),
        state=first("Tcb.State"),
        apc_state_index=first("Tcb.ApcStateIndex"),
        rings=offsets(_RINGS, 2 * pointer),
        backs=offsets(_BACKS, pointer),
        tag=4 if tag is None else tag,
        block_size=block_size if block_size is not None and _fits(block_size, header) else None,
        bodies=tuple(range(start, start + _OPTIONAL_HEADERS, alignment)),
        lowest=kernel_start,
        highest=(1 << memory.bits) - 1,
    )


def apc_shape(memory: Memory, symbols: KernelSymbols, layout: Layout, kernel_start: int) -> ApcShape:
    """Read from the symbol table the members of _KAPC that the search compares."""

    def offset(name: str) -> int:
        return _offset(symbols, "_KAPC", name) or 0

    def size(name: str) -> int:
        member = symbols.member("_KAPC", name)
        return 1 if member is None else member.size

    return ApcShape(
        pointer_size=memory.pointer_size,
        size=layout.apc.size,
        type_size=size("Type"),
        size_at=offset("Size"),
        size_size=size("Size"),
        thread=offset("Thread"),
        kernel_routine=offset("KernelRoutine"),
        apc_state_index=offset("ApcStateIndex"),
        apc_mode=offset("ApcMode"),
        inserted=offset("Inserted"),
        lowest=kernel_start,
        highest=(1 << memory.bits) - 1,
    )


def _fits(member: Member, size: int) -> bool:
    return is_number(member) and member.offset + member.size <= size


def _offset(symbols: KernelSymbols, structure: str, path: str) -> int | None:
    member = symbols.member(structure, path)
    return None if member is None else member.offset
