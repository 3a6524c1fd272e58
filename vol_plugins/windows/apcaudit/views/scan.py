"""The scan of physical memory for threads and KAPCs, and what of its hits is mapped in kernel space."""

from __future__ import annotations

from collections.abc import Iterator

from volatility3.framework import constants, interfaces

from ..layout import Layout, Member, is_number
from ..memory import PAGE, Memory
from ..processes import Processes
from ..symbols import KernelSymbols
from .mappings import kernel_addresses
from .pool_scan import ApcFinder, ApcShape, ThreadFinder
from .scanned import Scanned
from .thread_evidence import NO_PROCESS, NOTHING, OPEN, THREAD, ThreadEvidence, ThreadShape, Verdict

HIT_BOUND = 1 << 20
"""How many candidates are looked at; more are no machine's threads and APCs, but an image made to wear the scan out."""

_OPTIONAL_HEADERS = 0xA0
"""Bytes of all optional object headers together, at most: process 16, quota 32, handle 16, name 32, creator 32,
audit 16, extended 16 on x64 (_OBJECT_HEADER_*_INFO in the public PDBs; ObpInfoMaskToOffset)."""

_SIGNAL_STATE = 4
"""Where _DISPATCHER_HEADER has SignalState, on x86 and on x64 (WDK, wdm.h): behind four bytes of type and flags."""

# Rings of a thread that are usually empty: the APC lists, its mutants, timers and IRPs, who waits for it.
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
    """Hands vol's runs of bytes to both finders."""

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
    context: interfaces.context.ContextInterface,
    memory: Memory,
    symbols: KernelSymbols,
    layout: Layout,
    *,
    kernel_start: int,
    processes: Processes,
    progress: constants.ProgressCallback = None,
) -> Scanned:
    """Search the whole physical layer.

    Args:
        context: vol's.
        memory: the kernel's.
        symbols: the kernel's.
        layout: the kernel's.
        kernel_start: where kernel space begins.
        processes: what tells process objects from other memory.
        progress: called with percentages.
    """
    # One of them owns a thread all of whose rings are in use.
    listed = frozenset(process.address for process in processes.listed())
    shape = thread_shape(memory, symbols, layout, kernel_start)
    judge = ThreadEvidence(shape, processes.is_object)
    apcs = ApcFinder(apc_shape(memory, symbols, layout, kernel_start))
    scanner = _Scanner(ThreadFinder(shape, judge, listed), apcs)
    scanned = Scanned()

    def take(verdict: Verdict, physical: int, address: int, told: int | None) -> None:
        """Take what lies at a virtual address, which it tells itself or not, for what it is."""
        if verdict is OPEN:
            data, _ = memory.read_sparse(address, shape.size)
            verdict = judge(data, 0, told)
        if verdict is THREAD:
            scanned.threads.setdefault(address, physical)
        elif verdict is NO_PROCESS:
            scanned.without_process += 1

    # By virtual address as they tell it, and without one.
    displaced: list[int] = []
    homeless: list[tuple[Verdict, int]] = []
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
            homeless.append((verdict, physical))
        elif memory.physical(value) == physical:
            take(verdict, physical, value, value)
        elif verdict is THREAD:
            displaced.append(value)
    pages = kernel_addresses(memory, (physical for _, physical in homeless), kernel_start)
    for verdict, physical in homeless:
        page = pages.get(physical & ~(PAGE - 1))
        if page is not None:
            take(verdict, physical, page + physical % PAGE, None)
        elif verdict is THREAD:
            scanned.unmapped += 1
    # A copy of a thread that was found is nothing to tell of.
    scanned.unmapped += sum(address not in scanned.threads for address in displaced)
    return scanned


def thread_shape(memory: Memory, symbols: KernelSymbols, layout: Layout, kernel_start: int) -> ThreadShape:
    """Take from the symbol table what the search for threads compares."""
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
    """Take from the symbol table what the search for KAPCs compares."""

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
