"""APCs that complete an IRP: which request of whom, as far as the IRP and the thread's stack tell."""

from __future__ import annotations

from dataclasses import dataclass

from ..drivers.loaded import Drivers
from ..memory import Memory
from ..model import Apc, Ending, Origin, Thread
from ..queues import walk
from ..symbols import KernelSymbols
from .devices import Devices
from .irp import Irp, Irps
from .irp_names import flag_names
from .kernel_stacks import caller_above, on_stack
from .pool_tags import IRP_TAGS, read_pool_tag

LOCATIONS_TOLD = 12
"""How many stack locations the evidence names, the highest drivers'; few device stacks are deeper."""


@dataclass(frozen=True, slots=True)
class Use:
    """A KernelRoutine whose KAPC is an IRP's Tail.Apc: what it means, and what holds of the IRP meanwhile.

    `listed` is whether a threaded IRP is still on the thread's IrpList; `has_file` whether SystemArgument1 is the
    FileObject.
    """

    routine: str
    meaning: str
    listed: bool
    has_file: bool


# ReactOS ntoskrnl/io/iomgr/irp.c: IofCompleteRequest queues the first two, and IopCompleteRequest, which has taken the
# IRP off the thread's list by then, queues it again for the user's completion routine with UserIosb as argument.
USES = (
    Use("IopCompleteRequest", "completion of IRP", listed=True, has_file=True),
    Use("IopCompletePageWrite", "completion of paging write IRP", listed=False, has_file=False),
    Use("IopUserCompletion", "user completion routine of IRP", listed=False, has_file=False),
)


class Completions:
    """Attributes APCs to the IRPs whose completion they are."""

    def __init__(self, memory: Memory, symbols: KernelSymbols, drivers: Drivers, devices: Devices) -> None:
        self._memory = memory
        self._symbols = symbols
        self._drivers = drivers
        self._devices = devices
        self._irps = Irps(memory, symbols, drivers, devices)
        self._irp_list = symbols.member("_ETHREAD", "IrpList.Flink")
        self._listed: tuple[int, frozenset[int], bool] = (0, frozenset(), False)
        self._uses = {address: use for use in USES if (address := symbols.address(use.routine)) is not None}

    def of(self, apc: Apc, thread: Thread) -> Origin | None:
        """Return the origin of an APC whose KernelRoutine belongs to an IRP, None for any other."""
        use = self._uses.get(apc.kernel_routine.address) if apc.kernel_routine is not None else None
        irp = self._irps.around(apc.address) if use is not None else None
        if use is None or irp is None:
            return None
        evidence = [f"KernelRoutine is nt!{use.routine}, whose KAPC is an IRP's Tail.Apc: IRP {irp.address:#x}"]
        if not irp.plausible:
            evidence.append(f"its {irp.defects[0]}")
            return Origin(
                f"IRP {irp.address:#x}? ({irp.defects[0]})", tuple(evidence), ("who asked for it cannot be told",)
            )
        evidence += self._irp_evidence(apc, irp)
        inferred = self._requester(apc, irp, use, thread, evidence)
        text = f"{use.meaning} {irp.address:#x}"
        if irp.defects:
            text += f"? ({irp.defects[0]})"
        top = irp.top
        if top is not None and top.device is not None:
            doubt = "?" if irp.defects or top.device.defect else ""
            text += f", {top.function} to {top.device.driver_name}{doubt}"
            inferred.append(f"the request was sent to {top.device.driver_name}, whose stack location is the highest")
        issuer = self._issuer(irp, thread, inferred)
        if issuer is not None:
            text += f", issued by {issuer}?"
        return Origin(text, tuple(evidence), tuple(inferred))

    def _irp_evidence(self, apc: Apc, irp: Irp) -> list[str]:
        """State what the IRP holds."""
        facts = f"its Type is {irp.type}"
        if irp.defects:
            facts += ", but " + " and ".join(irp.defects)
        else:
            facts += f", Size {irp.size:#x}, StackCount {irp.stack_count} and CurrentLocation {irp.current_location}"
            facts += ", as a completed IRP has"
        found = [facts]
        tag = read_pool_tag(self._memory, self._symbols, irp.address, self._symbols.size_of("_IRP") or 0)
        if tag is None:
            found.append("its pool tag is unknown")
        else:
            found.append(
                f"its pool tag is '{tag.text}'" + ("" if tag.text in IRP_TAGS else ", none of the I/O manager's")
            )
        if irp.flags:
            found.append(f"its Flags are {flag_names(irp.flags)}")
        told = irp.locations[-LOCATIONS_TOLD:]
        found += [f"stack location {each.number} of {irp.stack_count} is {each}" for each in told]
        if len(told) < len(irp.locations):
            found.append(f"{len(irp.locations) - len(told)} lower stack locations are left out")
        if irp.unread:
            found.append(f"{irp.unread} of {irp.stack_count} stack locations could not be read")
        if None not in (irp.apc_environment, apc.apc_state_index) and irp.apc_environment != apc.apc_state_index:
            found.append(f"its ApcEnvironment is {irp.apc_environment}, the KAPC's ApcStateIndex {apc.apc_state_index}")
        return found

    def _requester(self, apc: Apc, irp: Irp, use: Use, thread: Thread, evidence: list[str]) -> list[str]:
        """Add to the evidence what ties the IRP to a thread and a file; return what follows from it."""
        inferred = []
        if use.has_file and apc.system_argument1:
            evidence.append(f"SystemArgument1 is the FileObject {self._devices.file(apc.system_argument1)}")
        if use.listed:
            listed = self._in_irp_list(irp, thread)
            if listed is None:
                evidence.append("whether it is in the thread's IrpList is unknown")
            elif listed:
                evidence.append("it is in the thread's IrpList")
                inferred.append("a threaded IRP: the thread itself made the request")
            else:
                evidence.append("it is not in the thread's IrpList")
                inferred.append(
                    "an IRP of IoAllocateIrp or IoBuildAsynchronousFsdRequest that nobody stopped completing"
                )
        if irp.apc_environment == 1:
            evidence.append("its ApcEnvironment is 1")
            inferred.append("the request was made while the thread was attached")
        for name, address in (("UserIosb", irp.user_iosb), ("UserEvent", irp.user_event)):
            if address and on_stack(thread, address):
                evidence.append(f"{name} {address:#x} lies on the thread's kernel stack")
                inferred.append("a synchronous request, made by a routine that is still on this stack")
        return list(dict.fromkeys(inferred))

    def _issuer(self, irp: Irp, thread: Thread, inferred: list[str]) -> str | None:
        """Name the module that made the request, from the thread's stack or from the highest stack location."""
        for name, address in (("UserIosb", irp.user_iosb), ("UserEvent", irp.user_event)):
            caller = caller_above(self._memory, self._drivers, thread, address) if address else None
            if caller is not None:
                inferred.append(f"{caller.code.module} issued the request: the nearest {caller} lies above {name}")
                return caller.code.module
        # A completion routine is set by whoever sent the IRP on; the highest location's, by whoever made it (WDK,
        # IoSetCompletionRoutine).
        highest = irp.locations[-1] if irp.locations else None
        if highest is None or highest.number != irp.stack_count or highest.completion_routine is None:
            return None
        module = highest.completion_routine.module
        if module is not None:
            inferred.append(f"{module} issued the request: the highest stack location's CompletionRoutine is its own")
        return module

    def _in_irp_list(self, irp: Irp, thread: Thread) -> bool | None:
        """Tell whether an IRP hangs on its thread's IrpList, None where the list cannot tell."""
        if self._irp_list is None:
            return None
        head = thread.address + self._irp_list.offset
        if self._listed[0] != head:
            walked = walk(self._memory.links, head, pointer_size=self._memory.pointer_size)
            self._listed = head, frozenset(walked.entries), walked.ending is Ending.CLOSED
        _, entries, closed = self._listed
        if irp.thread_list_entry in entries:
            return True
        return False if closed else None
