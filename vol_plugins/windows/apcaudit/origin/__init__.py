"""What queued an APC: by the structure that holds it, by its routines, and by the thread that waits for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from .. import windows
from ..formats.lists import walk
from ..image.structures import read_member
from ..kernel import Kernel
from ..model import Apc, Backing, Code, Origin, Process, Thread
from .holders import Embedded, read_billed, read_pool_tag
from .producers import IRP_ROUTINES, Producer, producers

if TYPE_CHECKING:
    from .completion import Completions
    from .holders import Reserves

# KOBJECTS EventNotificationObject and EventSynchronizationObject (ReactOS sdk/include/ndk/ketypes.h).
_EVENT_TYPES = (0, 1)

WAITER_BOUND = 64
"""How many wait blocks of one event are followed."""


@dataclass(frozen=True, slots=True)
class Waiter:
    """A thread that waits: its _ETHREAD's virtual address, TID and process."""

    thread: int
    tid: int | None
    process: Process | None

    def __str__(self) -> str:
        return f"thread {self.thread:#x} (TID {self.tid}) of {self.process or 'an unknown process'}"


class Waiters:
    """Reads the wait blocks of events."""

    def __init__(self, kernel: Kernel) -> None:
        symbols = kernel.symbols
        self._memory, self._symbols, self._processes = kernel.memory, symbols, kernel.processes
        self._head = symbols.member("_KEVENT", "Header.WaitListHead.Flink")
        self._entry = symbols.member("_KWAIT_BLOCK", "WaitListEntry.Flink")

    def read_event(self, address: int) -> tuple[Waiter, ...]:
        """Return the threads that wait on the _KEVENT at a virtual address, none where it is no event.

        Each wait block has to name the event and a thread object, so that what is no event yields nothing.
        """
        kind = self._read("_KEVENT", "Header.Type", address)
        if kind not in _EVENT_TYPES or self._head is None or self._entry is None:
            return ()
        head = address + self._head.offset
        walked = walk(self._memory.links, head, pointer_size=self._memory.pointer_size, bound=WAITER_BOUND)
        return tuple(self._named(address, (entry - self._entry.offset for entry in walked.entries)))

    def _named(self, event: int, blocks: Iterator[int]) -> Iterator[Waiter]:
        for block in blocks:
            thread = self._read("_KWAIT_BLOCK", "Thread", block)
            if self._read("_KWAIT_BLOCK", "Object", block) != event or not thread:
                continue
            if self._read("_KTHREAD", "Header.Type", thread) == windows.THREAD_OBJECT:
                # _ETHREAD.ThreadsProcess to 2003 and Vista, _KTHREAD.Process since.
                owner = "Tcb.Process" if self._symbols.member("_ETHREAD", "Tcb.Process") else "ThreadsProcess"
                process = self._read("_ETHREAD", owner, thread)
                tid = self._read("_ETHREAD", "Cid.UniqueThread", thread)
                yield Waiter(thread, tid, self._processes.read(process) if process else None)

    def _read(self, structure: str, path: str, address: int) -> int | None:
        return read_member(self._memory, self._symbols, structure, path, address)


# Bytes behind the KAPC of a get or set context request that are searched for its event. In ReactOS the event follows
# the KAPC (ntoskrnl/include/internal/ps.h, GET_SET_CTX_CONTEXT); the layout of Windows is not published.
_CONTEXT_REQUEST = 0x40

# KernelRoutine of an APC in a reserve object (NtAllocateReserveObject, since 7).
_RESERVED = "PspUserApcReserveKernelRoutine"

_INJECTOR = (
    "the pair by which drivers inject: the kernel APC prepares the thread or makes it deliver the user APC at once"
    " (BlackBone, injdrv)"
)

# KSI_KAPC of System Informer (KSystemInformer/include/kph.h): KAPC, DriverObject, InternalRoutine.
_KSI_MODULE, _KSI_ROUTINE_INDEX = "ksi", 1


class Origins:
    """Attributes APCs; reads nothing of the image before the first one."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._memory, self._symbols, self._drivers = kernel.memory, kernel.symbols, kernel.drivers
        self._processes = kernel.processes
        self._waiters = Waiters(kernel)
        routines = ((kernel.symbols.address(use.routine), use) for use in IRP_ROUTINES)
        self._of_irps = {address: use for address, use in routines if address is not None}
        self.embedded = Embedded(kernel)
        self._apc_size = kernel.layout.apc.size

    def attribute(self, apc: Apc, thread: Thread) -> Origin | None:
        """Return the origin of an APC on one of the thread's lists, None when its KernelRoutine is unknown."""
        known = self._producers(apc)
        origin = (
            self.embedded.attribute_member(apc, thread)
            or self._attribute_to_irp(apc, thread)
            or self.embedded.attribute_holder(apc)
            or (self._attribute_to_producers(apc, known) if known else None)
            or self._attribute_to_module(apc, thread)
        )
        if origin is None:
            return None
        return self._add_attachment(origin, apc, thread, original=any(row.original for row in known))

    @cached_property
    def _completions(self) -> Completions:
        # Most images have no IRP's APC queued, and this is the larger half of the package to load.
        from .completion import Completions

        return Completions(self._kernel)

    def _attribute_to_irp(self, apc: Apc, thread: Thread) -> Origin | None:
        use = self._of_irps.get(apc.kernel_routine.address) if apc.kernel_routine is not None else None
        return None if use is None else self._completions.attribute(apc, thread, use)

    def _producers(self, apc: Apc) -> tuple[Producer, ...]:
        kernel, normal = self._names(apc.kernel_routine), self._names(apc.normal_routine)
        return producers(kernel, normal if apc.apc_mode == windows.KERNEL_MODE else (), apc.apc_mode)

    def _names(self, code: Code | None) -> tuple[str, ...]:
        return self._symbols.names_at(code.address) if code is not None and code.module == "nt" else ()

    def _attribute_to_producers(self, apc: Apc, known: tuple[Producer, ...]) -> Origin:
        """Attribute an APC to the producers whose routine it has."""
        evidence = self._routine_evidence(apc)
        shared = len(self._names(apc.kernel_routine))
        if known[0].routine not in self._names(apc.normal_routine) and shared > 1:
            evidence.append(f"{shared - 1} other names share that routine's address")
        if known[0].routine == "PspGetSetContextSpecialApc":
            return self._context_request(apc, evidence)
        if known[0].routine == "IopRaiseHardError":
            return self._hard_error(apc, evidence)
        text = " or ".join(row.meaning for row in known[:3]) + ("?" if len(known) > 1 else "")
        if known[0].routine == _RESERVED:
            return self._reserved(apc, text, evidence)
        if apc.special_user:
            evidence.append(f"ApcMode is {apc.apc_mode}: the {'second' if apc.apc_mode else 'first'} of its two phases")
        billed = read_billed(self._kernel, apc.address) if apc.is_user else None
        if billed is not None:
            evidence.append(f"the KAPC's pool is billed to {billed}")
            return Origin(
                f"{text} by {billed}?", tuple(evidence), (f"{billed} asked for it: pool is billed to the caller",)
            )
        # The routine serves nothing else, but neither it nor its arguments name who asked.
        return Origin(text, tuple(evidence), ("attributed by the routine only",))

    @cached_property
    def _reserves(self) -> Reserves:
        # Hardly any image has one in use.
        from .holders import Reserves

        return Reserves(self._kernel)

    def _reserved(self, apc: Apc, text: str, evidence: list[str]) -> Origin:
        """Attribute an APC in a reserve object to the processes that have a handle to that."""
        reserve = self._reserves.around(apc.address)
        used = "cannot be read" if reserve.in_use is None else f"is {reserve.in_use}"
        evidence.append(f"the KAPC lies in the reserve object {reserve.body:#x}, whose InUse {used}")
        if reserve.holders is None:
            return Origin(text, tuple(evidence), ("attributed by the routine only: handles were not searched",))
        names = ", ".join(map(str, reserve.holders))
        if names:
            evidence.append(f"handles to it: {names}")
            return Origin(f"{text} by {names}?", tuple(evidence), ("who queues it needs a handle to the object",))
        evidence.append("no process has a handle to it" + ("" if reserve.complete else " in what could be read"))
        return Origin(text, tuple(evidence), ("attributed by the routine only",))

    def _context_request(self, apc: Apc, evidence: list[str]) -> Origin:
        """Attribute an APC to the thread that waits for the context, on the event behind the KAPC."""
        inferred, text = [], "get or set context"
        if apc.system_argument1 is not None:
            text = f"{'set' if apc.system_argument1 else 'get'} context?"
            evidence.append(f"SystemArgument1 is {apc.system_argument1:#x}")
            inferred.append("SystemArgument1 is 0 to get and another value to set")
        start = apc.address + self._apc_size
        for event in range(start, start + _CONTEXT_REQUEST, self._memory.pointer_size):
            waiters = self._waiters.read_event(event)
            if waiters:
                evidence.append(f"{waiters[0]} waits on the event {event:#x} behind the KAPC")
                inferred.append(f"{waiters[0]} asked for it")
                return Origin(f"{text} by {waiters[0].process}?", tuple(evidence), tuple(inferred))
        return Origin(text, tuple(evidence), tuple(inferred))

    def _hard_error(self, apc: Apc, evidence: list[str]) -> Origin:
        """Attribute an APC of IoRaiseHardError, whose arguments are Irp, Vpb and RealDeviceObject."""
        text = "I/O hard error"
        inferred: tuple[str, ...] = ()
        if apc.normal_context:
            evidence.append(f"NormalContext is the IRP {apc.normal_context:#x}")
        if apc.system_argument2:
            from .irp import Devices

            device = Devices(self._kernel).read_device(apc.system_argument2)
            evidence.append(f"SystemArgument2 is the device {device}")
            if device.defect is None:
                text += f" on {device.driver_name}?"
                inferred = (f"a request to {device.driver_name} failed and IoRaiseHardError was called for it",)
        return Origin(text, tuple(evidence), inferred)

    def _of_injector(self, apc: Apc, thread: Thread, module: str | None, evidence: list[str]) -> list[str]:
        """Say whether the driver of a user APC has queued a kernel APC to the thread too, as injecting drivers do."""
        for queue in thread.queues:
            for other in queue.apcs if queue.name.mode == windows.KERNEL_MODE else ():
                routine = other.kernel_routine
                if routine is not None and routine.module == module and other.address != apc.address:
                    evidence.append(
                        f"a kernel APC {other.address:#x} of {module} is queued to the thread too ({routine})"
                    )
                    return [_INJECTOR]
        return []

    def _attribute_to_module(self, apc: Apc, thread: Thread) -> Origin | None:
        """Attribute an APC to the module of its routines, the KernelRoutine's first."""
        if apc.kernel_routine is None:
            return None
        evidence = self._routine_evidence(apc)
        routines = [("KernelRoutine", apc.kernel_routine), ("RundownRoutine", apc.rundown_routine)]
        if apc.apc_mode == windows.KERNEL_MODE:
            routines.append(("NormalRoutine", apc.normal_routine))
        backing = apc.kernel_routine.backing
        if backing is not Backing.MODULE:
            return Origin(f"unknown: KernelRoutine is in {backing.value}", tuple(evidence))
        for name, routine in routines:
            if routine is not None and routine.module not in (None, "nt"):
                module = routine.module or ""
                if module == _KSI_MODULE:
                    module = self._read_ksi_target(apc, evidence) or module
                inferred = [f"{module} queued it: its code is what the APC runs ({name})"]
                inferred += self._of_injector(apc, thread, routine.module, evidence) if apc.is_user else []
                return Origin(f"{module}?", tuple(evidence), tuple(inferred))
        return Origin(f"attributed: routine only ({apc.kernel_routine})", tuple(evidence))

    def _read_ksi_target(self, apc: Apc, evidence: list[str]) -> str | None:
        """Return the module whose routine System Informer's wrapper APC calls."""
        at = apc.address + self._apc_size + _KSI_ROUTINE_INDEX * self._memory.pointer_size
        routine = self._memory.pointer(at)
        code = self._drivers.code(routine) if routine else None
        if code is None or code.backing is not Backing.MODULE:
            return None
        evidence.append(f"System Informer's wrapper calls {code}, noted behind the KAPC")
        return code.module

    def _routine_evidence(self, apc: Apc) -> list[str]:
        evidence = [f"KernelRoutine is {apc.kernel_routine}"]
        if apc.normal_routine is not None and apc.normal_routine.address:
            evidence.append(f"NormalRoutine is {apc.normal_routine}")
        tag = read_pool_tag(self._kernel, apc.address, self._apc_size)
        if tag is not None:
            evidence.append(f"the KAPC's pool tag is {tag}")
        return evidence

    def _add_attachment(self, origin: Origin, apc: Apc, thread: Thread, *, original: bool) -> Origin:
        """Add that the APC was queued while the thread was attached, if its list and its ApcStateIndex both show it."""
        members = thread.members
        elsewhere = apc.queue.mode is None or apc.queue.saved
        if thread.idle or elsewhere or members.apc_state_index != 1 or apc.apc_state_index != 1:
            return origin
        process = thread.attached
        if process is None and members.apc_process:
            process = self._processes.read(members.apc_process)
        where = f"attached to {process}" if process is not None else "attached"
        evidence = "it hangs on ApcState while ApcStateIndex is 1, and its own ApcStateIndex is 1"
        follows = f"queued while the thread was {where}"
        if original:
            follows += ", which its routine contradicts: it belongs to the original environment, SavedApcState"
        else:
            follows += ", so not by suspension, get or set context, or NtQueueApcThread, which use SavedApcState then"
        return Origin(
            f"{origin.text}, queued while {where}?", (*origin.evidence, evidence), (*origin.inferred, follows)
        )
