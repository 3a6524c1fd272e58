"""The scan of physical memory for threads and KAPCs, and what of its hits is mapped in kernel space."""

from __future__ import annotations

from collections.abc import Iterator

from volatility3.framework import constants, interfaces

from ..layout import Layout
from ..memory import PAGE, Memory
from ..symbols import KernelSymbols
from .mappings import kernel_addresses
from .pool_scan import ApcFinder, ApcShape, ThreadFinder, ThreadShape
from .scanned import Scanned

HIT_BOUND = 1 << 20
"""How many hits are kept; more are no machine's threads and APCs, but an image made to exhaust memory."""

_OPTIONAL_HEADERS = 0xA0
"""Bytes of all optional object headers together, at most: process 16, quota 32, handle 16, name 32, creator 32,
audit 16, extended 16 on x64 (_OBJECT_HEADER_*_INFO in the public PDBs; ObpInfoMaskToOffset)."""

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

    def __call__(self, data: bytes, data_offset: int) -> Iterator[tuple[bool, int, int | None]]:
        limit = self.chunk_size
        for physical, virtual in self._threads(data, data_offset, limit):
            yield True, physical, virtual
        for physical, thread in self._apcs(data, data_offset, limit):
            yield False, physical, thread


def scan(
    context: interfaces.context.ContextInterface,
    memory: Memory,
    symbols: KernelSymbols,
    layout: Layout,
    *,
    kernel_start: int,
    processes: frozenset[int],
    progress: constants.ProgressCallback = None,
) -> Scanned:
    """Search the whole physical layer.

    Args:
        context: vol's.
        memory: the kernel's.
        symbols: the kernel's.
        layout: the kernel's.
        kernel_start: where kernel space begins.
        processes: virtual addresses of known _EPROCESSes: one of them owns a thread all of whose rings are in use.
        progress: called with percentages.
    """
    scanner = _Scanner(
        ThreadFinder(thread_shape(memory, symbols, layout, kernel_start), processes),
        ApcFinder(apc_shape(memory, symbols, layout, kernel_start)),
    )
    scanned = Scanned()
    homeless: list[int] = []
    hits = memory.physical_layer.scan(context, scanner, progress)
    for number, (is_thread, physical, value) in enumerate(hits):
        if number == HIT_BOUND:
            scanned.cut_short = True
            break
        if not is_thread:
            scanned.apcs.setdefault(value, []).append(physical)
        elif value is None:
            homeless.append(physical)
        elif memory.physical(value) == physical:
            scanned.threads[value] = physical
        else:
            scanned.unmapped += 1
    for physical, virtual in _mapped(memory, homeless, kernel_start):
        if virtual is None:
            scanned.unmapped += 1
        else:
            scanned.threads.setdefault(virtual, physical)
    return scanned


def _mapped(memory: Memory, homeless: list[int], kernel_start: int) -> Iterator[tuple[int, int | None]]:
    pages = kernel_addresses(memory, homeless, kernel_start)
    for physical in homeless:
        page = pages.get(physical & ~(PAGE - 1))
        yield physical, None if page is None else page + physical % PAGE


def thread_shape(memory: Memory, symbols: KernelSymbols, layout: Layout, kernel_start: int) -> ThreadShape:
    """Take from the symbol table what the search for threads compares."""
    pointer = memory.pointer_size
    alignment = 2 * pointer  # of pool blocks (WDK, ExAllocatePoolWithTag)
    header = symbols.size_of("_POOL_HEADER") or alignment
    body = _offset(symbols, "_OBJECT_HEADER", "Body") or 0
    tag = _offset(symbols, "_POOL_HEADER", "PoolTag")
    start = -(-(header + body) // alignment) * alignment
    return ThreadShape(
        pointer_size=pointer,
        alignment=alignment,
        size=layout.thread.size,
        type=_offset(symbols, "_ETHREAD", "Tcb.Header.Type") or 0,
        signal_state=_offset(symbols, "_ETHREAD", "Tcb.Header.SignalState") or pointer // 2,
        process=_offset(symbols, "_ETHREAD", "Tcb.ApcState.Process") or 0,
        rings=_offsets(symbols, _RINGS),
        backs=_offsets(symbols, _BACKS),
        tag=4 if tag is None else tag,
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


def _offset(symbols: KernelSymbols, structure: str, path: str) -> int | None:
    member = symbols.member(structure, path)
    return None if member is None else member.offset


def _offsets(symbols: KernelSymbols, paths: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(offset for path in paths if (offset := _offset(symbols, "_ETHREAD", path)) is not None)
