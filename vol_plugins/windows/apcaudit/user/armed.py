"""What will queue user APCs to a thread later: its timers, its requests, and reserve objects in use for it."""

from __future__ import annotations

from collections.abc import Iterator

from .. import windows
from ..formats.lists import walk
from ..image.structures import read_member, read_unicode_string
from ..kernel import Kernel
from ..model import Apc, Code, QueuedThread, QueueName
from ..queues.apc_lists import ApcLists
from ..targets import Target
from ..threads.kernel_views import read_handle_table
from . import UserStage

ARMED_BOUND = 64
"""How many timers, requests and reserve objects of one thread are looked at."""

TABLES_BOUND = 256
"""Of how many processes the handle tables are searched for reserve objects."""

_TYPES = 0x100  # entries of nt!ObTypeIndexTable: TypeIndex is a byte (public PDBs since 7)
_RESERVE_TYPE = "UserApcReserve"  # Windows Internals, "Object types"
_CREATE_OPERATION = 0x80  # IRP_CREATE_OPERATION (wdm.h): then a size takes the place of the user APC routine

Source = tuple[str, Apc, "Target | None"]
"""What will queue an APC, in words, the APC, and what that would run."""


class ArmedApcs:
    """Finds what is armed for threads."""

    def __init__(self, kernel: Kernel, lists: ApcLists, stage: UserStage) -> None:
        self._kernel = kernel
        self._memory, self._symbols = kernel.memory, kernel.symbols
        self._lists = lists
        self._stage = stage
        find = self._symbols.member
        self._timer_list = find("_ETHREAD", "ActiveTimerListHead.Flink")
        self._timer_entry = find("_ETIMER", "ActiveTimerListEntry.Flink")
        self._timer_apc = find("_ETIMER", "TimerApc")
        self._irp_list = find("_ETHREAD", "IrpList.Flink")
        self._irp_entry = find("_IRP", "ThreadListEntry.Flink")
        self._header = find("_OBJECT_HEADER", "Body")
        self._type: int | None = None
        self._asked_type = False
        self._reserves: dict[int, tuple[int, ...]] = {}

    def find(self, thread: QueuedThread) -> tuple[Source, ...]:
        """Return what will queue user APCs to a thread; what is queued already is left out."""
        queued = {apc.address for queue in thread.queues for apc in queue.apcs}
        found = (*self._timers(thread), *self._requests(thread), *self._reserved(thread))
        return tuple((text, apc, self._stage.target(apc, thread)) for text, apc in found if apc.address not in queued)

    def _timers(self, thread: QueuedThread) -> Iterator[tuple[str, Apc]]:
        """Yield the timers that the thread has set with a completion routine (ReactOS, ex/timer.c, NtSetTimer)."""
        if self._timer_list is None or self._timer_entry is None or self._timer_apc is None:
            return
        for entry in self._entries(thread.address + self._timer_list.offset):
            timer = entry - self._timer_entry.offset
            apc = self._lists.read_apc(timer + self._timer_apc.offset, QueueName.USER, 0, thread=thread)
            if apc.thread == thread.address and apc.apc_mode == windows.USER_MODE and not apc.inserted:
                yield f"timer {timer:#x}", apc

    def _requests(self, thread: QueuedThread) -> Iterator[tuple[str, Apc]]:
        """Yield the pending IRPs with a user APC routine."""
        if self._irp_list is None or self._irp_entry is None:
            return
        for entry in self._entries(thread.address + self._irp_list.offset):
            irp = entry - self._irp_entry.offset
            flags = self._read("Flags", irp)
            routine = self._read("Overlay.AsynchronousParameters.UserApcRoutine", irp)
            context = self._read("Overlay.AsynchronousParameters.UserApcContext", irp)
            if flags is None or flags & _CREATE_OPERATION or not routine:
                continue
            # Not a KAPC yet: IopCompleteRequest makes it one of this routine when the request ends.
            code = self._kernel.drivers.routine(routine)
            yield f"IRP {irp:#x}", _apc_of(irp, thread.address, code, context)

    def _reserved(self, thread: QueuedThread) -> Iterator[tuple[str, Apc]]:
        """Yield the reserve objects of the thread's process that are in use for it and hang on no list."""
        if thread.owner is None:
            return
        for body in self._reserves_of(thread.owner.address):
            data = self._memory.read(body, 4)
            if data is None or not any(data):
                continue
            apc = self._lists.read_apc(body + self._memory.pointer_size, QueueName.USER, 0, thread=thread)
            if apc.thread == thread.address and apc.is_user and not apc.inserted:
                yield f"reserve object {body:#x}", apc

    def _reserves_of(self, process: int) -> tuple[int, ...]:
        """Return the reserve objects of user APCs that a process has handles to; the system has few, if any."""
        kind = self._reserve_type()
        if kind is None or self._header is None:
            return ()
        if process not in self._reserves:
            table = read_member(self._memory, self._symbols, "_EPROCESS", "ObjectTable", process)
            asked = table and len(self._reserves) < TABLES_BOUND
            objects = read_handle_table(self._kernel, table)[0].items() if asked and table else ()
            headers = {header for _, header in objects if self._type_of(header) == kind}
            self._reserves[process] = tuple(sorted(header + self._header.offset for header in headers))[:ARMED_BOUND]
        return self._reserves[process]

    def _reserve_type(self) -> int | None:
        """Return the index of the object type of reserve objects, None where there is none, or no object of it."""
        table = self._symbols.address("ObTypeIndexTable")
        if not self._asked_type and table is not None:
            self._asked_type = True
            for index in range(2, _TYPES):
                kind = self._memory.pointer(table + index * self._memory.pointer_size)
                if not kind:
                    break
                if read_unicode_string(self._memory, self._symbols, "_OBJECT_TYPE", "Name", kind) == _RESERVE_TYPE:
                    total = read_member(self._memory, self._symbols, "_OBJECT_TYPE", "TotalNumberOfObjects", kind)
                    self._type = index if total != 0 else None
                    break
        return self._type

    def _type_of(self, header: int) -> int | None:
        """Read an object's type; since 10 its index is combined with its address and a cookie (nt!ObGetObjectType)."""
        index = read_member(self._memory, self._symbols, "_OBJECT_HEADER", "TypeIndex", header)
        cookie = self._symbols.address("ObHeaderCookie")
        mixed = None if cookie is None else self._memory.read(cookie, 1)
        return index if index is None or mixed is None else index ^ mixed[0] ^ (header >> 8 & 0xFF)

    def _entries(self, head: int) -> tuple[int, ...]:
        return walk(self._memory.links, head, pointer_size=self._memory.pointer_size, bound=ARMED_BOUND).entries

    def _read(self, path: str, irp: int) -> int | None:
        return read_member(self._memory, self._symbols, "_IRP", path, irp)


def _apc_of(irp: int, thread: int, routine: Code, context: int | None) -> Apc:
    """Make the user APC that a request will become, of which only the routine and its context are known."""
    return Apc(
        address=irp,
        queue=QueueName.USER,
        position=0,
        type=None,
        size=None,
        thread=thread,
        kernel_routine=None,
        rundown_routine=None,
        normal_routine=routine,
        normal_context=context,
        system_argument1=None,
        system_argument2=None,
        apc_state_index=None,
        apc_mode=windows.USER_MODE,
        inserted=0,
    )
