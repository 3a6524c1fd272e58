"""I/O completion APCs: the request that ended, and the thread that waits for it."""

from __future__ import annotations

from dataclasses import dataclass

from ..formats.lists import walk
from ..image import Memory
from ..kernel import Kernel
from ..model import Apc, Code, Ending, Origin, Thread
from ..modules import Drivers
from ..unwind.scan import find_call
from .holders import IRP_TAGS, read_pool_tag
from .irp import Devices, Irp, Irps, flag_names
from .producers import IrpRoutine

STACK_BOUND = 64 << 10
"""How many bytes of a stack are searched: on x64 a stack has 24 KiB, a large one up to 72 (Windows Internals)."""

# Modules that every request passes through; the requester is the first module above them on the stack.
_COMMON = frozenset({"nt", "hal"})


@dataclass(frozen=True, slots=True)
class Caller:
    """A pointer into a driver, found on a stack at `found_at`; `follows_call` is whether a call precedes its target."""

    found_at: int
    code: Code
    follows_call: bool

    def __str__(self) -> str:
        return f"{'return address' if self.follows_call else 'pointer'} {self.code} at {self.found_at:#x}"


def on_stack(thread: Thread, address: int | None) -> bool | None:
    """Tell whether an address lies on the thread's kernel stack; None where its limits could not be read."""
    limit, base = thread.members.stack_limit, thread.members.stack_base
    if address is None or limit is None or base is None:
        return None
    return limit <= address < base


def caller_above(memory: Memory, drivers: Drivers, thread: Thread, address: int) -> Caller | None:
    """Find the nearest return address into a driver above a place on the thread's kernel stack.

    A pointer whose target follows a call instruction is preferred to any other. None is: no pointer into a driver in
    the part of the stack that could be read.
    """
    base = thread.members.stack_base
    size = memory.pointer_size
    if base is None or not on_stack(thread, address):
        return None
    start = -(-address // size) * size
    data, holes = memory.read_sparse(start, min(base - start, STACK_BOUND))
    # The search ends at a page that is not in the image, since the nearest caller may be on that page.
    end = holes[0][0] if holes else len(data)
    nearest: Caller | None = None
    for offset in range(0, end - size + 1, size):
        value = int.from_bytes(data[offset : offset + size], "little")
        driver = drivers.find_loaded(value)
        if driver is None or driver.label.lower() in _COMMON:
            continue
        if find_call(memory.read, value, size).follows:
            return Caller(start + offset, drivers.code(value), follows_call=True)
        if nearest is None:
            nearest = Caller(start + offset, drivers.code(value), follows_call=False)
    return nearest


LOCATIONS_NAMED = 12
"""How many stack locations the evidence names, those of the highest drivers; few device stacks are deeper."""


class Completions:
    """Attributes APCs to the IRPs that they complete."""

    def __init__(self, kernel: Kernel) -> None:
        symbols = kernel.symbols
        self._kernel = kernel
        self._memory, self._symbols, self._drivers = kernel.memory, symbols, kernel.drivers
        self._devices = devices = Devices(kernel)
        self._irps = Irps(kernel, devices)
        self._irp_list = symbols.member("_ETHREAD", "IrpList.Flink")
        self._listed: tuple[int, frozenset[int], bool] = (0, frozenset(), False)

    def attribute(self, apc: Apc, thread: Thread, use: IrpRoutine) -> Origin | None:
        """Return the origin of an APC whose KernelRoutine belongs to an IRP, None where there is no IRP around it."""
        irp = self._irps.read_around(apc.address)
        if irp is None:
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
        """Return the evidence in the IRP itself."""
        facts = f"its Type is {irp.type}"
        if irp.defects:
            facts += ", but " + " and ".join(irp.defects)
        else:
            facts += f", Size {irp.size:#x}, StackCount {irp.stack_count} and CurrentLocation {irp.current_location}"
            facts += ", as a completed IRP has"
        found = [facts]
        tag = read_pool_tag(self._kernel, irp.address, self._symbols.size_of("_IRP") or 0)
        if tag is None:
            found.append("its pool tag is unknown")
        else:
            found.append(
                f"its pool tag is '{tag.text}'" + ("" if tag.text in IRP_TAGS else ", none of the I/O manager's")
            )
        if irp.flags:
            found.append(f"its Flags are {flag_names(irp.flags)}")
        named = irp.locations[-LOCATIONS_NAMED:]
        found += [f"stack location {each.number} of {irp.stack_count} is {each}" for each in named]
        if len(named) < len(irp.locations):
            found.append(f"{len(irp.locations) - len(named)} lower stack locations are left out")
        if irp.unread:
            found.append(f"{irp.unread} of {irp.stack_count} stack locations could not be read")
        if None not in (irp.apc_environment, apc.apc_state_index) and irp.apc_environment != apc.apc_state_index:
            found.append(f"its ApcEnvironment is {irp.apc_environment}, the KAPC's ApcStateIndex {apc.apc_state_index}")
        return found

    def _requester(self, apc: Apc, irp: Irp, use: IrpRoutine, thread: Thread, evidence: list[str]) -> list[str]:
        """Add to the evidence what relates the IRP to a thread and a file; return what is inferred from it."""
        inferred = []
        if use.has_file and apc.system_argument1:
            evidence.append(f"SystemArgument1 is the FileObject {self._devices.read_file(apc.system_argument1)}")
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
        """Name the module that made the request, by the thread's stack or by the highest stack location."""
        for name, address in (("UserIosb", irp.user_iosb), ("UserEvent", irp.user_event)):
            caller = caller_above(self._memory, self._drivers, thread, address) if address else None
            if caller is not None:
                inferred.append(f"{caller.code.module} issued the request: the nearest {caller} lies above {name}")
                return caller.code.module
        # A driver that passes an IRP on sets the completion routine of its location; that of the highest location was
        # set by the module that made the IRP (WDK, IoSetCompletionRoutine).
        highest = irp.locations[-1] if irp.locations else None
        if highest is None or highest.number != irp.stack_count or highest.completion_routine is None:
            return None
        module = highest.completion_routine.module
        if module is not None:
            inferred.append(f"{module} issued the request: the highest stack location's CompletionRoutine is its own")
        return module

    def _in_irp_list(self, irp: Irp, thread: Thread) -> bool | None:
        """Tell whether an IRP is on its thread's IrpList, None where the list could not be followed to its end."""
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
