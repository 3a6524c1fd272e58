"""The thread that a bugcheck stopped the machine on, and the KAPC or routine that its parameters name."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

from .. import windows
from ..dumps.bugcheck_parameters import BugcheckReferences, crash_sentence, other_sentence
from ..formats.crash_header import CrashHeader
from ..formats.lists import walk
from ..image.structures import read_member
from ..kernel import Kernel
from ..model import Apc, BugCheck, Code, Ending, Facts, FoundThread, Queue, QueuedThread, QueueName, ThreadMembers
from ..unwind import StackRange
from .apc_lists import ApcLists

# Offsets of Esp and Rsp in CONTEXT (winnt.h), of which a dump header's ContextRecord is one.
_STACK_POINTER = {4: ("<I", 0xC4), 8: ("<Q", 0x98)}

_INSTRUCTION = ("Rip", "Eip")
_REGISTERS = ("Rax", "Rcx", "Rdx", "R8", "R9", "R10", "R11", "Rbx", "Rsi", "Rdi")
_REGISTERS32 = ("Eax", "Ecx", "Edx", "Ebx", "Esi", "Edi")
"""Members of _KTRAP_FRAME: x64 and x86."""


# Routines that stop the machine (KeBugCheck and KeBugCheckEx: WDK; KeBugCheck2: public PDBs), and the distance in bytes
# from a routine's start up to which an address counts as one in the routine.
_STOPPING = frozenset({"KeBugCheck", "KeBugCheckEx", "KeBugCheck2"})
FUNCTION_BOUND = 0x4000


class Crash:
    """Relates the bugcheck to threads; `thread` is the _ETHREAD that stopped the machine, None where that is unknown.

    `stack_pointer` is that thread's, None unless the dump's context record lies on its stack.

    Args:
        kernel: the image's.
        lists: reads KAPCs.
        bugcheck: the stop code and its parameters, None where the machine did not stop.
        running: the processors' stacks by the virtual address of their current thread.
        dumped: virtual addresses of the threads that a minidump names.
        header: the crash dump's, None for other images.
    """

    def __init__(
        self,
        kernel: Kernel,
        lists: ApcLists,
        bugcheck: BugCheck | None,
        running: Mapping[int, tuple[StackRange, ...]],
        dumped: Iterable[int],
        header: CrashHeader | None,
    ) -> None:
        self._memory, self._symbols, self._layout = kernel.memory, kernel.symbols, kernel.layout
        self._drivers, self._processes = kernel.drivers, kernel.processes
        self._lists = lists
        self._bugcheck = bugcheck
        self._apcs = self._named_apcs()
        pointer = _stack_pointer(header)
        dumped_thread = next(iter(dumped), None)
        self.thread = self._find_thread(running, pointer) if dumped_thread is None else dumped_thread
        on_its_stack = self.thread is not None and pointer is not None and self._on_stack(self.thread, pointer)
        self.stack_pointer = pointer if on_its_stack else None
        named = (self.thread, self._apcs[0].thread if self._apcs else None)
        self.threads = frozenset(each for each in named if each is not None)
        """The crashed thread and the thread of the KAPC that the bugcheck names, by virtual address."""

    def _find_thread(self, running: Mapping[int, tuple[StackRange, ...]], pointer: int | None) -> int | None:
        """Find the crashed thread among those on the processors, None where that is not certain.

        The first of these rules that names one thread decides: the thread on whose stack, or whose processor's, the
        dump's stack pointer lies; the only thread that runs on a processor; the thread of the KAPC that the bugcheck
        names; the only running thread whose stack has an address in KeBugCheck, KeBugCheckEx or KeBugCheck2.
        """
        if self._bugcheck is None:
            return None
        on_stack = [each for each in running if pointer and self._on_stack(each, pointer)]
        if pointer and not on_stack:
            on_stack = [each for each, stacks in running.items() if any(one.holds(pointer) for one in stacks)]
        of_apc = [each for each in running if self._apcs and self._apcs[0].thread == each]
        for candidates in (on_stack, tuple(running), of_apc):
            if len(candidates) == 1:
                return candidates[0]
        stopping = [each for each in running if self._is_stopping(each)]
        return stopping[0] if len(stopping) == 1 else None

    def add_bugcheck_apcs(self, thread: FoundThread, queues: tuple[Queue, ...]) -> tuple[Queue, ...]:
        """Add the KAPCs that the bugcheck names and that no list holds to the crashed thread's queues, as off-list.

        The queues of any other thread are returned as they are.
        """
        if self._bugcheck is None or thread.address != self.thread:
            return queues
        on_lists = {apc.address for queue in queues for apc in queue.apcs}
        gone = (
            self._lists.read_apc(apc.address, apc.queue, apc.position, thread=thread, of_bugcheck=True)
            for apc in self._apcs
            if apc.address not in on_lists
        )
        lost = tuple(gone)
        return _with_off_list(queues, lost) if lost else queues

    def sentence(self, thread: QueuedThread, facts: Facts) -> str | None:
        """Say what the bugcheck has to do with a thread, None where that is nothing."""
        bugcheck = self._bugcheck
        if bugcheck is None or thread.address not in self.threads:
            return None
        if thread.address != self.thread:
            return other_sentence(bugcheck, self._apcs[0]) if self._apcs else None
        on_lists = {apc.address: apc for queue in thread.queues for apc in queue.apcs}
        frame = bugcheck.parameters[1] if bugcheck.code == windows.KERNEL_SECURITY_CHECK_FAILURE else 0
        named = BugcheckReferences(
            self._drivers.code,
            self._processes.read,
            on_lists.get(self._apcs[0].address, self._apcs[0]) if self._apcs else None,
            self._faulted_at(frame),
            self._registers(frame, thread),
        )
        return crash_sentence(thread, bugcheck, named, facts)

    def _named_apcs(self) -> tuple[Apc, ...]:
        """Return the KAPC that a parameter names, and those that were unlinked together with it."""
        bugcheck = self._bugcheck
        if bugcheck is None or len(bugcheck.parameters) != 4:
            return ()
        if bugcheck.code == windows.KERNEL_APC_PENDING_DURING_EXIT and bugcheck.parameters[0]:
            return self._read_flushed(bugcheck.parameters[0])
        if bugcheck.code == windows.IRQL_UNEXPECTED_VALUE and bugcheck.parameters[2]:
            apc = self._read_apc(bugcheck.parameters[2], 0)
            # Its routine may have freed it, so that other data lies there now.
            if apc is not None and _address(apc.kernel_routine) == bugcheck.parameters[1]:
                return (apc,)
        return ()

    def _read_flushed(self, entry: int) -> tuple[Apc, ...]:
        # KeRundownApcQueues and KeFlushQueueApc unlink the head and leave the entries in a ring of their own.
        ring = (entry, *walk(self._memory.links, entry, pointer_size=self._layout.pointer_size).entries)
        apcs: list[Apc] = []
        for each in ring:
            if each != entry and self._lists.is_head(each):
                continue
            apc = self._read_apc(each - self._layout.apc_list_entry, len(apcs))
            if apc is None:
                break
            apcs.append(apc)
        if not apcs and self._memory.partial and entry >= self._drivers.kernel_start:
            # Where a minidump lacks it, its address is known all the same.
            address = entry - self._layout.apc_list_entry
            apc = self._lists.read_apc(address, QueueName.OFF_LIST, 0, of_bugcheck=True)
            return (apc,) if apc.absent else ()
        return tuple(apcs)

    def _read_apc(self, address: int, position: int) -> Apc | None:
        """Read the KAPC at an address, None if none lies there (any more)."""
        apc = self._lists.read_apc(address, QueueName.OFF_LIST, position, of_bugcheck=True)
        return apc if apc.type == windows.APC_OBJECT and apc.size == self._layout.apc.size else None

    def _on_stack(self, thread: int, pointer: int) -> bool:
        limit, base = self._stack_of(thread)
        return limit <= pointer < base

    def _stack_of(self, thread: int) -> tuple[int, int]:
        """Return StackLimit and StackBase of a thread, an empty range where they cannot be read or are impossible."""
        data = self._memory.read(thread, self._layout.thread.size)
        if data is None:
            return 0, 0
        members = ThreadMembers._make(self._layout.thread(data))
        limit, base = members.stack_limit or 0, members.stack_base or 0
        return (limit, base) if limit < base <= limit + windows.STACK_BOUND else (0, 0)

    def _is_stopping(self, thread: int) -> bool:
        """Tell whether a thread's stack holds an address within the routines that stop the machine."""
        limit, base = self._stack_of(thread)
        size = self._layout.pointer_size
        data, _ = self._memory.read_sparse(limit, base - limit)
        words = struct.unpack_from("<" + ("I" if size == 4 else "Q") * (len(data) // size), data)
        starts = [start for name in _STOPPING if (start := self._symbols.address(name)) is not None]
        near = (word for word in words if any(start < word < start + FUNCTION_BOUND for start in starts))
        found = (self._symbols.nearest(word) for word in near)
        return any(nearest is not None and nearest[0] in _STOPPING for nearest in found)

    def _faulted_at(self, frame: int) -> Code | None:
        values = (self._register(name, frame) for name in _INSTRUCTION)
        return next((self._drivers.code(value) for value in values if value), None)

    def _registers(self, frame: int, thread: QueuedThread) -> tuple[str, ...]:
        """Say which registers of a trap frame point to an APC list head of the thread or to a KAPC's LIST_ENTRY."""
        heads = {queue.head: f"the head of its {queue.name.value} APC list" for queue in thread.queues if queue.head}
        for name, offset in (("kernel", self._layout.kernel_head), ("user", self._layout.user_head)):
            heads.setdefault(thread.address + offset, f"the head of its {name} APC list")
        found = []
        for name in (*_REGISTERS, *_REGISTERS32):
            value = self._register(name, frame)
            if not value:
                continue
            what = heads.get(value)
            if what is None and value % self._layout.pointer_size == 0 and value >= self._drivers.kernel_start:
                apc = self._read_apc(value - self._layout.apc_list_entry, 0)
                what = None if apc is None else f"the LIST_ENTRY of the KAPC {apc.address:#x} ({apc.kernel_routine})"
            if what is not None:
                found.append(f"{name} points to {what}")
        return tuple(found)

    def _register(self, name: str, frame: int) -> int | None:
        return read_member(self._memory, self._symbols, "_KTRAP_FRAME", name, frame) if frame else None


def _address(code: Code | None) -> int | None:
    return None if code is None else code.address


def _with_off_list(queues: tuple[Queue, ...], apcs: tuple[Apc, ...]) -> tuple[Queue, ...]:
    others = tuple(queue for queue in queues if queue.name is not QueueName.OFF_LIST)
    before = tuple(apc for queue in queues if queue.name is QueueName.OFF_LIST for apc in queue.apcs)
    return (*others, Queue(QueueName.OFF_LIST, 0, (*apcs, *before), Ending.CLOSED, 0))


def _stack_pointer(header: CrashHeader | None) -> int | None:
    if header is None:
        return None
    form, offset = _STACK_POINTER[header.pointer_size]
    (value,) = struct.unpack_from(form, header.context_record, offset)
    return value if isinstance(value, int) else None
