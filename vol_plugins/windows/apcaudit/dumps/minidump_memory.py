"""The genuine virtual memory in a minidump: its data blocks, and the structures that are stored separately.

A minidump has separate copies of the crashing processor's `_KPRCB`, its current `_ETHREAD`, that thread's `_EPROCESS`
and stack, and the debugger data block. Some have their address in a header, others none. The bytes are genuine;
addresses that were inferred from other bytes are listed in `inferred`.

The three structures hold pointers to themselves: heads of empty lists, and in a thread its KAPCs and wait blocks. A
copy is placed where those lead, so that no member is ever read at another structure's address.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

from ..formats.files import ReadFile
from ..formats.triage import Minidump
from ..formats.triage_defects import next_part
from ..formats.triage_header import TRIAGE_DUMP_PRCB, TRIAGE_DUMP_PROCESS, TRIAGE_DUMP_STACK, TRIAGE_DUMP_THREAD
from .kernel_match import KernelSymbolFile
from .pages import Extent, KnownMemory

_FEWEST_SELF_POINTERS = 2
_MOST_PROCESSORS = 2048


@dataclass(frozen=True, slots=True)
class DumpedMemory:
    """Known bytes of virtual memory, and the virtual addresses of the crashed thread, its process and its KPRCB.

    `stack` is the range [start, end) of the stack that the machine crashed on, None where the dump has none. `inferred`
    has a sentence on each address that other bytes gave, `defects` one on each copy in the file that has no place.
    """

    memory: KnownMemory
    thread: int | None
    process: int | None
    prcb: int | None
    stack: tuple[int, int] | None
    inferred: tuple[str, ...]
    defects: tuple[str, ...]


def dumped_memory(dump: Minidump, read: ReadFile, kernel: KernelSymbolFile | None) -> DumpedMemory:
    """Collect a minidump's memory; the kernel's symbols replace a debugger data block that is missing or short."""
    collector = _Collector(dump, read, kernel)
    collector.place_data_blocks()
    collector.place_debugger_data()
    stack = collector.place_stack()
    thread = collector.place_thread()
    process = collector.place_process()
    prcb = collector.place_prcb(thread)
    inferred, defects = tuple(collector.inferred), tuple(collector.defects)
    return DumpedMemory(collector.memory, thread, process, prcb, stack, inferred, defects)


class _Collector:
    def __init__(self, dump: Minidump, read: ReadFile, kernel: KernelSymbolFile | None) -> None:
        self.memory = KnownMemory()
        self.inferred: list[str] = []
        self.defects: list[str] = []
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

    def place_stack(self) -> tuple[int, int] | None:
        # TopOfStack is the lowest address of the stored part of the stack; in a genuine dump it ends at StackBase.
        triage = self._dump.triage
        top, size = triage.top_of_stack, triage.size_of_call_stack
        if not (self._dump.header.claims(TRIAGE_DUMP_STACK) and triage.call_stack_offset and top and size):
            return None
        self._place(top, triage.call_stack_offset, size)
        return top, top + size

    def place_thread(self) -> int | None:
        """Place the crashed thread where its own pointers lead; return its address, even if the file has no copy."""
        named = self._pointer_in_copy(
            "_KPRCB", self._structures.get("OffsetPrcbCurrentThread") or self._member("_KPRCB", "CurrentThread")
        )
        copy = self._copy("_ETHREAD")
        if not copy:
            return named
        places = _self_addresses(copy, self._pointer_size)
        pointer = named.to_bytes(self._pointer_size, "little") if named is not None else b""
        if named is not None and (places[named] or pointer in _words(copy, self._pointer_size)):
            self._place_copy("_ETHREAD", named, "KPRCB.CurrentThread and the thread's own pointers say")
            return named
        own = _most_named(places)
        if own is not None:
            self._place_copy("_ETHREAD", own, "its own pointers say")
            if named is not None:
                self.defects.append(
                    f"the minidump contradicts itself: its KPRCB names the thread {named:#x}, but the thread that it"
                    f" holds lay at {own:#x} by its own pointers, and is shown there"
                )
            return own
        where = "" if named is None else f" {named:#x}, which the KPRCB names"
        self.defects.append(
            f"the minidump lacks the crashed thread{where}: what it holds in its place is damaged, or another thread,"
            " since no pointer in it leads to itself"
        )
        return named

    def place_process(self) -> int | None:
        """Place the process to which the thread was attached, of which the dump has a copy, unless it contradicts."""
        offset = self._structures.get("OffsetKThreadApcProcess")
        if offset is None:
            state, within = self._member("_KTHREAD", "ApcState"), self._member("_KAPC_STATE", "Process")
            offset = state + within if state is not None and within is not None else None
        named = self._pointer_in_copy("_ETHREAD", offset)
        places = _self_addresses(self._copy("_EPROCESS"), self._pointer_size)
        own = _most_named(places)
        if named is not None and own is not None and not places[named]:
            self.defects.append(
                f"the minidump contradicts itself: the crashed thread was in the process {named:#x}, but the process"
                f" that it holds lay at {own:#x} by its own pointers, and is shown there"
            )
            self._place_copy("_EPROCESS", own, "its own pointers say")
        elif named is not None:
            self._place_copy("_EPROCESS", named, "the thread's ApcState.Process says")
        return named

    def place_prcb(self, thread: int | None) -> int | None:
        """Place the crashed processor's KPRCB by KiProcessorBlock, else by its own pointers."""
        copy = self._copy("_KPRCB")
        if not copy:
            return None
        prcb = self._prcb_of_processor_block(thread)
        source = "KiProcessorBlock says"
        if prcb is None:
            prcb, source = _most_named(_self_addresses(copy, self._pointer_size)), "its own pointers say"
        if prcb is not None:
            self._place_copy("_KPRCB", prcb, source)
        return prcb

    def _copy(self, type_name: str) -> bytes:
        """Return the bytes of the file's copy of a structure, none where it has no copy or the size is unknown."""
        offset, size_name = self._copies[type_name]
        size = self._structures.get(size_name) or self._type_size(type_name)
        return self._read(offset, self._size_in_file(offset, size)) if offset and size else b""

    def _place_copy(self, type_name: str, address: int, source: str) -> None:
        offset, _ = self._copies[type_name]
        if self._place(address, offset, len(self._copy(type_name))):
            self.inferred.append(f"the dump's copy of {type_name} is placed at {address:#x}, as {source}")

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
        size = min(self._size_in_file(offset, size), (1 << (self._pointer_size * 8)) - address)
        return self.memory.add(Extent(address, size, offset)) if size > 0 else 0

    def _size_in_file(self, offset: int, size: int) -> int:
        # A copy ends where the next part of the file begins, even if the headers claim a larger size.
        end = min(offset + size, self._dump.file_size)
        mark = self._dump.triage.valid_offset
        return max(0, next_part(self._dump.triage, offset, mark if offset < mark < end else end) - offset)

    def _type_size(self, type_name: str) -> int:
        layout = self._kernel.types.get(type_name) if self._kernel else None
        return layout.size if layout else 0

    def _member(self, type_name: str, member: str) -> int | None:
        layout = self._kernel.types.get(type_name) if self._kernel else None
        return layout.members.get(member) if layout else None


def _words(data: bytes, size: int) -> tuple[bytes, ...]:
    return tuple(data[at : at + size] for at in range(0, len(data) - size + 1, size))


def _self_addresses(copy: bytes, size: int) -> Counter[int]:
    """Count the addresses at which a structure lies if a LIST_ENTRY in it is the head of an empty list.

    Flink and Blink of such a head are the head's own address. A list of one entry gives a wrong address; two heads
    hardly ever give the same wrong one.
    """
    words = [int.from_bytes(word, "little") for word in _words(copy, size)]
    kernel_space = 1 << (size * 8 - 1)
    return Counter(
        one - index * size
        for index, (one, other) in enumerate(pairwise(words))
        if one == other and one >= kernel_space and one % size == 0
    )


def _most_named(places: Counter[int]) -> int | None:
    """Return the address that at least two self-pointers and more than any other name."""
    (first, count), *others = [*places.most_common(2), (0, 0)]
    return first if count >= _FEWEST_SELF_POINTERS and count > others[0][1] else None
