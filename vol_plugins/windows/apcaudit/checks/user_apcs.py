"""The findings about what a user APC would run: pure functions of its target."""

from __future__ import annotations

from ..findings import Finding, Severity
from ..model import Apc, Backing, Facts, Thread
from ..targets import CHAIN, FIRST_MODULE, FIRST_ROUTINE, MANY_ALIKE, Gadget, Lies, Target, gadget, loader, serves_wow64
from .embedded import is_special_user

CHAIN_NAMED = 8
"""How many APCs of a chain a sentence names."""


def private_code(target: Target, apc: Apc, thread: Thread, facts: Facts) -> Finding | None:
    """A user APC would run private executable memory."""
    if not _is_private_code(target):
        return None
    place = target.place
    process = thread.process_of(apc)
    severity = Severity.HIGH if place.writable and target.others == 0 else Severity.MEDIUM
    text = f"it would run {_where(target)}, private memory of {process}"
    if target.others is not None:
        more = f"{target.others or 'no'} more such region{'' if target.others == 1 else 's'}"
        text += f", which has {more}" + (f", {target.alike} of them alike" if target.alike else "")
    return Finding("user-apc-private-code", severity, text)


def used_gadget(target: Target, apc: Apc, thread: Thread, facts: Facts) -> Finding | None:
    """A user APC would run a function that forwards control or writes memory."""
    found = gadget(target.place.names)
    if found is None:
        return None
    does = found[1]
    text = f"it would run {target.place} with {_number(target.argument)}, which {does.value}"
    registers = target.registers
    if registers is not None:
        text += (
            f": the CONTEXT at {registers.address:#x} has the instruction pointer {registers.instruction.address:#x}"
            f" ({registers.instruction}) and the first argument {registers.argument:#x}"
        )
    elif does is Gadget.CONTROL and target.argument:
        text += ": the registers there cannot be read"
    return Finding("user-apc-gadget", Severity.HIGH, text + _chain(thread))


def _chain(thread: Thread) -> str:
    """Name the gadgets that are queued to a thread in their order, where they are a chain."""
    targets = (thread.target(apc) for queue in thread.queues for apc in queue.apcs)
    names = [
        found[0] + ("" if target.registers is None else f" to {target.registers.instruction}")
        for target in targets
        if target is not None and (found := gadget(target.place.names)) is not None
    ]
    if len(names) < CHAIN:
        return ""
    kind = "alertable thread" if thread.members.alertable else "thread"
    listed = ", ".join(names[:CHAIN_NAMED]) + (", ..." if len(names) > CHAIN_NAMED else "")
    return f"; {len(names)} such APCs are queued to this {kind}, as a program does that sleeps encrypted: {listed}"


def used_loader(target: Target, apc: Apc, thread: Thread, facts: Facts) -> Finding | None:
    """A user APC would load a DLL."""
    if loader(target.place.names) is None:
        return None
    routine = apc.kernel_routine
    by_driver = routine is not None and routine.backing is Backing.MODULE and routine.module not in (None, "nt")
    name = f"'{target.string}'" if target.string is not None else "a name that cannot be read"
    text = f"it would run {target.place} with {name}"
    if by_driver and routine is not None:
        text += f", queued by {routine.module}: security products and anti-cheat load their DLLs so"
    return Finding("user-apc-loader", Severity.LOW if by_driver else Severity.MEDIUM, text)


def nowhere(target: Target, apc: Apc, thread: Thread, facts: Facts) -> Finding | None:
    """A user APC would run where nothing is mapped, or nothing that is executable."""
    if not _is_nowhere(target):
        return None
    process = thread.process_of(apc)
    if target.place.lies is Lies.NOWHERE:
        text = f"it would run {target.place.address:#x}, where {process} has nothing mapped"
    else:
        text = f"it would run {_where(target)} of {process}, which is not executable"
    return Finding(
        "user-apc-nowhere", Severity.MEDIUM, text + ": a DLL was unloaded with APCs outstanding, or code was freed"
    )


def early(apc: Apc, thread: Thread, facts: Facts) -> Finding | None:
    """A user APC is queued to the only thread of a process in which nothing has run in user mode yet."""
    target = thread.target(apc)
    if not thread.first or target is None or _may_be_first_routine(target):
        return None
    worse = _worse(target)
    text = f"it is queued to the only thread of {thread.owner}, in which nothing has run in user mode yet"
    text += f": it would run {_where(target)} before the program does"
    return Finding("user-apc-early", Severity.HIGH if worse else Severity.LOW, text + _because(worse))


def _may_be_first_routine(target: Target) -> bool:
    """Tell whether a target is Windows' own first routine, or so little of it could be read that it may be."""
    place = target.place
    if place.names or place.why is None:
        return FIRST_ROUTINE in place.names
    if place.lies is Lies.IMAGE:
        return place.module is None or place.module.lower() == FIRST_MODULE
    return place.lies is Lies.UNKNOWN


def special_user(apc: Apc, thread: Thread, facts: Facts) -> Finding | None:
    """A special user APC interrupts its thread wherever that is, without an alertable wait."""
    if not is_special_user(apc, facts):
        return None
    target = thread.target(apc)
    worse = _worse(target)
    suspended = bool(thread.members.suspend_count)
    severity = Severity.HIGH if worse else Severity.MEDIUM if suspended else Severity.LOW
    phase = "first phase (its KernelRoutine has not run)" if apc.apc_mode == 0 else "second phase"
    text = f"a special user APC in its {phase}"
    if target is not None:
        text += f" would run {_where(target)} without an alertable wait"
    if suspended:
        text += f"; the thread is suspended (SuspendCount {thread.members.suspend_count})"
    return Finding("special-user-apc", severity, text + _because(worse))


def wow64(target: Target, apc: Apc, thread: Thread, facts: Facts) -> Finding | None:
    """A 32-bit routine in a native process, or a 64-bit one that does not belong into a 32-bit program."""
    process = thread.process_of(apc)
    if process is None or process.wow64 is None:
        return None
    if target.encoded and not process.wow64:
        return Finding(
            "user-apc-wow64",
            Severity.HIGH,
            f"NormalRoutine is the 32-bit address {target.place.address:#x} in the encoding of WoW64, yet {process}"
            " runs no 32-bit code",
        )
    place = target.place
    if not process.wow64 or target.narrow or place.lies is Lies.UNKNOWN or serves_wow64(place.path):
        return None
    tool = place.lies is Lies.IMAGE and place.bits == 64
    return Finding(
        "user-apc-wow64",
        Severity.MEDIUM if tool else Severity.HIGH,
        f"it would run {_where(target)} as 64-bit code, yet {process} runs 32-bit code"
        + (": a 64-bit tool's module" if tool else ""),
    )


def patched_image(target: Target, apc: Apc, thread: Thread, facts: Facts) -> Finding | None:
    """A user APC would run a page of an image that the process has a copy of its own of."""
    if not target.place.own_page or target.place.executable is False or target.elsewhere:
        return None
    return Finding(
        "user-apc-patched-image",
        Severity.MEDIUM,
        f"it would run {target.place}, whose page is no longer the file's: {thread.process_of(apc)} has a copy of its"
        " own, other than other processes",
    )


def _is_private_code(target: Target) -> bool:
    if target.place.lies is not Lies.PRIVATE or not target.place.executable:
        return False
    # Compilers at run time make many regions alike; security products put a trampoline into all processes.
    return (target.alike or 0) < MANY_ALIKE and not target.elsewhere


def _is_nowhere(target: Target) -> bool:
    if target.place.lies is Lies.UNKNOWN:
        return False
    return target.place.lies is Lies.NOWHERE or target.place.executable is False


def _worse(target: Target | None) -> str | None:
    """Name the finding that makes an early or a special user APC a serious one."""
    if target is None:
        return None
    if gadget(target.place.names) is not None:
        return "user-apc-gadget"
    if _is_nowhere(target):
        return "user-apc-nowhere"
    return "user-apc-private-code" if _is_private_code(target) else None


def _because(worse: str | None) -> str:
    return f"; together with {worse}" if worse is not None else ""


def _where(target: Target) -> str:
    """Name a target and, where a dispatcher leads there, the dispatcher."""
    return target.text + (f" by way of {target.via}" if target.via is not None else "")


def _number(argument: int | None) -> str:
    return "an argument that is not known" if argument is None else f"{argument:#x}"
