"""Who queued an APC: evidence out of the image and what follows from it, kept apart."""

from __future__ import annotations

from dataclasses import replace

from .. import facts as windows
from ..drivers.loaded import Drivers
from ..memory import Memory
from ..model import Apc, Backing, Code, Origin, Thread
from ..processes import Processes
from ..symbols import KernelSymbols
from .completion import Completions
from .devices import Devices
from .embedded import Embedded
from .pool_tags import read_pool_tag
from .producers import Producer, producers
from .waiters import Waiters

# Bytes behind the KAPC of a get or set context request that are searched for its event: ReactOS has it right behind
# (ntoskrnl/include/internal/ps.h, GET_SET_CTX_CONTEXT), Windows publishes no layout.
_CONTEXT_REQUEST = 0x40

# KSI_KAPC of System Informer (KSystemInformer/include/kph.h): KAPC, DriverObject, InternalRoutine.
_KSI_MODULE, _KSI_ROUTINE_INDEX = "ksi", 1


class Origins:
    """Attributes APCs; nothing is read before it is asked for one."""

    def __init__(self, memory: Memory, symbols: KernelSymbols, drivers: Drivers, processes: Processes) -> None:
        self._memory = memory
        self._symbols = symbols
        self._drivers = drivers
        self._devices = Devices(memory, symbols, drivers)
        self._processes = processes
        self._waiters = Waiters(memory, symbols, processes)
        self._completions = Completions(memory, symbols, drivers, self._devices)
        self.embedded = Embedded(memory, symbols)
        self._apc_size = symbols.size_of("_KAPC") or 0

    def named(self, thread: Thread) -> Thread:
        """Return a thread whose APCs all carry their origin."""
        if not thread.queues:
            return thread
        queues = (
            replace(queue, apcs=tuple(replace(apc, origin=self.of(apc, thread)) for apc in queue.apcs))
            for queue in thread.queues
        )
        return replace(thread, queues=tuple(queues))

    def of(self, apc: Apc, thread: Thread) -> Origin | None:
        """Return the origin of an APC on one of the thread's lists, None when its KernelRoutine is unknown."""
        known = self._producers(apc)
        origin = (
            self.embedded.of_thread(apc, thread)
            or self._completions.of(apc, thread)
            or self.embedded.holder(apc)
            or (self._produced(apc, known) if known else None)
            or self._module(apc)
        )
        if origin is None:
            return None
        return self._while_attached(origin, apc, thread, original=any(row.original for row in known))

    def _producers(self, apc: Apc) -> tuple[Producer, ...]:
        kernel, normal = self._names(apc.kernel_routine), self._names(apc.normal_routine)
        return producers(kernel, normal if apc.apc_mode == windows.KERNEL_MODE else (), apc.apc_mode)

    def _names(self, code: Code | None) -> tuple[str, ...]:
        return self._symbols.names_at(code.address) if code is not None and code.module == "nt" else ()

    def _produced(self, apc: Apc, known: tuple[Producer, ...]) -> Origin:
        """Attribute an APC to the producers whose routine it has."""
        evidence = self._routine_evidence(apc)
        shared = len(self._names(apc.kernel_routine))
        if known[0].routine not in self._names(apc.normal_routine) and shared > 1:
            evidence.append(f"{shared - 1} other names share that routine's address")
        if known[0].routine == "PspGetSetContextSpecialApc":
            return self._context_request(apc, evidence)
        if known[0].routine == "IopRaiseHardError":
            return self._hard_error(apc, evidence)
        text = " or ".join(row.meaning for row in known[:3])
        # The routine serves nothing else, but neither it nor its arguments name who asked.
        return Origin(text + ("?" if len(known) > 1 else ""), tuple(evidence), ("attributed by the routine only",))

    def _context_request(self, apc: Apc, evidence: list[str]) -> Origin:
        """Attribute an APC to who waits for the context: the event behind the KAPC, on the caller's stack."""
        inferred, text = [], "get or set context"
        if apc.system_argument1 is not None:
            text = f"{'set' if apc.system_argument1 else 'get'} context?"
            evidence.append(f"SystemArgument1 is {apc.system_argument1:#x}")
            inferred.append("SystemArgument1 is 0 to get and another value to set")
        start = apc.address + self._apc_size
        for event in range(start, start + _CONTEXT_REQUEST, self._memory.pointer_size):
            waiters = self._waiters.of_event(event)
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
            device = self._devices.device(apc.system_argument2)
            evidence.append(f"SystemArgument2 is the device {device}")
            if device.defect is None:
                text += f" on {device.driver_name}?"
                inferred = (f"a request to {device.driver_name} failed and IoRaiseHardError was called for it",)
        return Origin(text, tuple(evidence), inferred)

    def _module(self, apc: Apc) -> Origin | None:
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
                    module = self._behind_ksi(apc, evidence) or module
                inferred = f"{module} queued it: its code is what the APC runs ({name})"
                return Origin(f"{module}?", tuple(evidence), (inferred,))
        return Origin(f"attributed: routine only ({apc.kernel_routine})", tuple(evidence))

    def _behind_ksi(self, apc: Apc, evidence: list[str]) -> str | None:
        """Return the module whose routine System Informer's wrapper calls."""
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
        tag = read_pool_tag(self._memory, self._symbols, apc.address, self._apc_size)
        if tag is not None:
            evidence.append(f"the KAPC's pool tag is {tag}")
        return evidence

    def _while_attached(self, origin: Origin, apc: Apc, thread: Thread, *, original: bool) -> Origin:
        """Add that the APC was queued during the attachment, which its list and environment tell together."""
        members = thread.members
        elsewhere = apc.queue.mode is None or apc.queue.saved
        if thread.idle or elsewhere or members.apc_state_index != 1 or apc.apc_state_index != 1:
            return origin
        process = thread.attached
        if process is None and members.apc_process:
            process = self._processes.at(members.apc_process)
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
