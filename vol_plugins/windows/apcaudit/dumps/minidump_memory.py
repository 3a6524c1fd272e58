"""The genuine virtual memory in a minidump: its data blocks, and the structures that are stored separately.

A minidump has separate copies of the crashing processor's `_KPRCB`, its current `_ETHREAD`, that thread's `_EPROCESS`
and stack, and the debugger data block. Some have their address in a header, others none. The bytes are genuine;
addresses that were inferred from other bytes are listed in `inferred`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ..formats.triage import Minidump, ReadFile
from ..formats.triage_header import TRIAGE_DUMP_PRCB, TRIAGE_DUMP_PROCESS, TRIAGE_DUMP_STACK, TRIAGE_DUMP_THREAD
from .kernel_match import KernelSymbolFile
from .pages import Extent, KnownMemory

# Each of the priorities 0 to 31 has a ready list (wdm.h: MAXIMUM_PRIORITY 32); most of them are empty at any time.
_READY_LISTS = 32
_FEWEST_EMPTY_READY_LISTS = 8
_MOST_PROCESSORS = 2048


@dataclass(frozen=True, slots=True)
class DumpedMemory:
    """Known bytes of virtual memory, and the virtual addresses of the crashed thread, its process and its KPRCB."""

    memory: KnownMemory
    thread: int | None
    process: int | None
    prcb: int | None
    inferred: tuple[str, ...]


def dumped_memory(dump: Minidump, read: ReadFile, kernel: KernelSymbolFile | None) -> DumpedMemory:
    """Collect a minidump's memory; the kernel's symbols replace a debugger data block that is missing or short."""
    collector = _Collector(dump, read, kernel)
    collector.place_data_blocks()
    collector.place_debugger_data()
    collector.place_stack()
    thread = collector.thread()
    process = collector.process()
    prcb = collector.prcb(thread)
    collector.place_copy("_ETHREAD", thread, "KPRCB.CurrentThread")
    collector.place_copy("_EPROCESS", process, "the thread's ApcState.Process")
    collector.place_copy("_KPRCB", prcb, "KiProcessorBlock or the processor's own list heads")
    return DumpedMemory(collector.memory, thread, process, prcb, tuple(collector.inferred))


class _Collector:
    def __init__(self, dump: Minidump, read: ReadFile, kernel: KernelSymbolFile | None) -> None:
        self.memory = KnownMemory()
        self.inferred: list[str] = []
        self._dump = dump
        self._read = read
        self._kernel = kernel
        self._pointer_size = dump.header.pointer_size
        self._structures = dump.debugger_data.structures if dump.debugger_data else {}
        triage = dump.triage
        self._copies = {
            "_KPRCB": (triage.prcb_offset if dump.header.claims(TRIAGE_DUMP_PRCB) else 0, "SizePrcb"),
            "_EPROCESS": (triage.process_offset if dump.header.claims(TRIAGE_DUMP_PROCESS) else 0, "SizeEProcess"),
            "_ETHREAD": (triage.thread_offset if dump.header.claims(TRIAGE_DUMP_THREAD) else 0, "SizeEThread"),
        }

    def place_data_blocks(self) -> None:
        for block in self._dump.data_blocks:
            self.memory.add(Extent(block.address, block.size, block.offset))

    def place_debugger_data(self) -> None:
        address = self._dump.header.kd_debugger_data_block
        if self._dump.debugger_data and address:
            self._place(address, self._dump.triage.debugger_data_offset, self._dump.triage.debugger_data_size)

    def place_stack(self) -> None:
        # TopOfStack is the lowest address of the stored part of the stack; in a genuine dump it ends at StackBase.
        triage = self._dump.triage
        if self._dump.header.claims(TRIAGE_DUMP_STACK) and triage.call_stack_offset and triage.top_of_stack:
            self._place(triage.top_of_stack, triage.call_stack_offset, triage.size_of_call_stack)

    def place_copy(self, type_name: str, address: int | None, source: str) -> None:
        offset, size_name = self._copies[type_name]
        size = self._structures.get(size_name) or self._type_size(type_name)
        if address is not None and offset and size and self._place(address, offset, size):
            self.inferred.append(f"the dump's copy of {type_name} is placed at {address:#x}, as {source} says")

    def thread(self) -> int | None:
        return self._pointer_in_copy(
            "_KPRCB", self._structures.get("OffsetPrcbCurrentThread") or self._member("_KPRCB", "CurrentThread")
        )

    def process(self) -> int | None:
        # ApcState.Process and not the owner: the dump has the process to which the thread was attached.
        offset = self._structures.get("OffsetKThreadApcProcess")
        if offset is None:
            state, within = self._member("_KTHREAD", "ApcState"), self._member("_KAPC_STATE", "Process")
            offset = state + within if state is not None and within is not None else None
        return self._pointer_in_copy("_ETHREAD", offset)

    def prcb(self, thread: int | None) -> int | None:
        if not self._copies["_KPRCB"][0]:
            return None
        return self._prcb_of_processor_block(thread) or self._prcb_of_ready_lists()

    def _prcb_of_processor_block(self, thread: int | None) -> int | None:
        data = self._dump.debugger_data
        block = data.variables.get("KiProcessorBlock") if data else None
        current_thread = self._structures.get("OffsetPrcbCurrentThread")
        number = self._structures.get("OffsetPrcbNumber")
        if block is None or current_thread is None or number is None:
            return None
        # KPRCB.Number is a byte up to Windows Vista, and its low byte is the same later.
        own_number = self._read(self._copies["_KPRCB"][0] + number, 1)
        by_number = None
        for processor in range(min(self._dump.header.number_processors, _MOST_PROCESSORS)):
            entry = self.memory.read(block + processor * self._pointer_size, self._pointer_size, self._read)
            if entry is None:
                continue
            prcb = int.from_bytes(entry, "little")
            running = self.memory.read(prcb + current_thread, self._pointer_size, self._read)
            if running is not None and int.from_bytes(running, "little") == thread:
                return prcb
            if running is None and own_number == bytes((processor & 0xFF,)):
                by_number = by_number or prcb
        return by_number

    def _prcb_of_ready_lists(self) -> int | None:
        # The head of an empty list points to itself, which gives the address of the structure that contains it.
        first = self._member("_KPRCB", "DispatcherReadyListHead")
        if first is None:
            return None
        votes: Counter[int] = Counter()
        for index in range(_READY_LISTS):
            offset = first + index * 2 * self._pointer_size
            flink = self._pointer_in_copy("_KPRCB", offset)
            if flink is not None and flink == self._pointer_in_copy("_KPRCB", offset + self._pointer_size):
                votes[flink - offset] += 1
        prcb, count = votes.most_common(1)[0] if votes else (0, 0)
        return prcb if count >= _FEWEST_EMPTY_READY_LISTS else None

    def _pointer_in_copy(self, type_name: str, offset: int | None) -> int | None:
        # None unless it is an aligned kernel address.
        start, _ = self._copies[type_name]
        if not start or offset is None:
            return None
        data = self._read(start + offset, self._pointer_size)
        address = int.from_bytes(data, "little")
        kernel_space = 1 << (self._pointer_size * 8 - 1)
        return address if len(data) == self._pointer_size and address >= kernel_space and address % 8 == 0 else None

    def _place(self, address: int, offset: int, size: int) -> int:
        # A copy ends where the next part of the file begins, even if the headers claim a larger size.
        triage = self._dump.triage
        starts = (
            triage.mm_offset,
            triage.unloaded_drivers_offset,
            triage.prcb_offset,
            triage.process_offset,
            triage.thread_offset,
            triage.call_stack_offset,
            triage.debugger_data_offset,
            triage.driver_list_offset,
            triage.string_pool_offset,
            triage.data_blocks_offset,
            triage.valid_offset,
        )
        end = min((start for start in starts if start > offset), default=offset + size)
        space = 1 << (self._pointer_size * 8)
        size = min(size, end - offset, space - address)
        return self.memory.add(Extent(address, size, offset)) if size > 0 and self._read(offset + size - 1, 1) else 0

    def _type_size(self, type_name: str) -> int:
        layout = self._kernel.types.get(type_name) if self._kernel else None
        return layout.size if layout else 0

    def _member(self, type_name: str, member: str) -> int | None:
        layout = self._kernel.types.get(type_name) if self._kernel else None
        return layout.members.get(member) if layout else None
