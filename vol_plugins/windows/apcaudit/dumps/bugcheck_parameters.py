"""Describes a bugcheck's relation to a thread and its APCs, from the four parameters of the bugcheck."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .. import windows
from ..model import Apc, Backing, BugCheck, Code, Facts, Process, QueuedThread, QueueName
from .bugcheck_line import bugcheck_name


@dataclass(frozen=True, slots=True)
class BugcheckReferences:
    """What the parameters of a bugcheck refer to.

    `code` and `process` resolve addresses. `apc` is the KAPC that a parameter points to. `faulted_at` is the
    instruction in the trap frame of a fast fail, and `registers` describes those registers in it that point to the
    thread's APC lists.
    """

    code: Callable[[int], Code]
    process: Callable[[int], Process]
    apc: Apc | None = None
    faulted_at: Code | None = None
    registers: tuple[str, ...] = ()


def crash_sentence(thread: QueuedThread, bugcheck: BugCheck, named: BugcheckReferences, facts: Facts) -> str:
    """Describe what the crashing thread was doing with APCs at the bugcheck; where that is nothing, name it only."""
    tie = _SENTENCES.get(bugcheck.code)
    text = None if tie is None or len(bugcheck.parameters) != 4 else tie(thread, bugcheck.parameters, named, facts)
    if text is None:
        text = "on this thread"
    return f"bugcheck {bugcheck_name(bugcheck.code)} stopped the machine {text} (from {bugcheck.source})"


def other_sentence(bugcheck: BugCheck, apc: Apc) -> str:
    """Describe the bugcheck's relation to the Thread of the KAPC in its parameters, where another thread crashed."""
    name = bugcheck_name(bugcheck.code)
    return f"bugcheck {name} names the KAPC {apc.address:#x}, whose Thread is this one (from {bugcheck.source})"


def _index_mismatch(thread: QueuedThread, parameters: tuple[int, ...], named: BugcheckReferences, facts: Facts) -> str:
    routine, index, disable, kind = parameters
    code = named.code(routine)
    if kind == 1:
        when = f"when the worker routine {code} returned in this thread"
    elif code.backing is Backing.USER:
        when = f"when this thread returned to user mode at {routine:#x} from a system call"
    elif code.module == "nt" and (code.symbol or "").startswith("Nt"):
        when = f"when this thread returned from the system call {code}"
    else:
        # Work items and user callbacks end in the same check, and x64 since 8 passes a kernel address as parameter 4.
        when = f"when this thread left {code}, a system call, work item or callback"
    before = ""
    if index > 1 or "special_apc_disable" in facts.lacks:
        # XP and 2003 pack the index together with the one before the call, and pass KernelApcDisable from before the
        # call as parameter 4.
        before = f" (before the call {index & 0xFF}, KernelApcDisable {signed(kind, 32)})"
        index >>= 8
    attached = f", attached to {thread.attached}" if index and thread.attached is not None else ""
    return f"{when}: ApcStateIndex was {index}{attached}, {_counters(disable, facts)}{before}"


def _attach(thread: QueuedThread, parameters: tuple[int, ...], named: BugcheckReferences, facts: Facts) -> str:
    target, current, index, in_dpc = parameters
    to, at = named.process(target), named.process(current)
    if in_dpc:
        return f"when this thread attached to {to} with a DPC running on its processor (ApcStateIndex {index})"
    if index:
        return (
            f"when this thread attached to {to} while attached to {at} (ApcStateIndex {index}), or when an APC"
            f" delivered to it in {to} left it attached to {at}"
        )
    return f"when an APC was delivered to this thread that began in {to} and ended in {at} (ApcStateIndex 0)"


def _detach(thread: QueuedThread, parameters: tuple[int, ...], named: BugcheckReferences, facts: Facts) -> str:
    members = thread.members
    if members.apc_state_index != 1:
        return f"when this thread detached, though its ApcStateIndex is {members.apc_state_index}, not 1"
    lists = (queue.name for queue in thread.queues if queue.apcs)
    left = [f"its {name.value} APC list" for name in lists if name in (QueueName.KERNEL, QueueName.USER)]
    if members.kernel_apc_in_progress:
        left.append("KernelApcInProgress")
    gone = f"what it stopped for is not in {_image(facts)}"
    why = f"{' and '.join(left)} shows why" if left else gone
    return f"when this thread detached from {thread.attached or 'another process'}: {why}"


def _exit(thread: QueuedThread, parameters: tuple[int, ...], named: BugcheckReferences, facts: Facts) -> str:
    entry, disable, irql, _ = parameters
    apc = named.apc
    if apc is not None:
        routine = "not in this dump" if apc.absent else f"KernelRoutine {apc.kernel_routine or 'unreadable'}"
        held = f"when this thread exited with the KAPC {apc.address:#x} ({routine}) queued"
        held += ", which the exit has taken off its list" if apc.of_bugcheck else f", on its {apc.queue.value} list"
    elif entry:
        held = f"when this thread exited with an APC queued, whose LIST_ENTRY {entry:#x} is no KAPC's in"
        held += f" {_image(facts)}"
    else:
        held = "when this thread exited with APCs disabled"
    return f"{held}: {_counters(disable, facts)}, IRQL {irql & 0xFF}"


def _list_corrupt(
    thread: QueuedThread, parameters: tuple[int, ...], named: BugcheckReferences, facts: Facts
) -> str | None:
    if parameters[0] != windows.FAST_FAIL_CORRUPT_LIST_ENTRY:
        return None
    where = f"at {named.faulted_at}" if named.faulted_at is not None else "at an address that the image does not have"
    registers = f"; {', '.join(named.registers)}" if named.registers else ""
    return f"when this thread found a LIST_ENTRY corrupt {where}{registers}"


def _unexpected_irql(
    thread: QueuedThread, parameters: tuple[int, ...], named: BugcheckReferences, facts: Facts
) -> str | None:
    irqls, kernel, address, normal = parameters
    # The bugcheck concerns an APC only if the lowest byte is 0 or 1.
    if irqls & 0xFF > 1 or not address:
        return None
    text = (
        f"when an APC routine returned to this thread at IRQL {irqls >> 16 & 0xFF} instead of {irqls >> 8 & 0xFF}:"
        f" KAPC {address:#x}, KernelRoutine {named.code(kernel)}"
    )
    if normal:
        text += f", NormalRoutine {named.code(normal)}"
    return text if named.apc is not None else f"{text}; {_image(facts)} holds no KAPC there"


def _image(facts: Facts) -> str:
    return "this dump" if facts.partial else "this image"


def _counters(combined: int, facts: Facts) -> str:
    """Describe _KTHREAD.CombinedApcDisable: both counters, but only KernelApcDisable before Server 2003."""
    if "special_apc_disable" in facts.lacks:
        return f"KernelApcDisable was {signed(combined, 32)}"
    return f"KernelApcDisable was {signed(combined, 16)}, SpecialApcDisable {signed(combined >> 16, 16)}"


def signed(value: int, bits: int) -> int:
    """Interpret the lowest `bits` bits of a value as a signed integer."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


_SENTENCES: dict[int, Callable[[QueuedThread, tuple[int, ...], BugcheckReferences, Facts], str | None]] = {
    windows.APC_INDEX_MISMATCH: _index_mismatch,
    windows.INVALID_PROCESS_ATTACH_ATTEMPT: _attach,
    windows.INVALID_PROCESS_DETACH_ATTEMPT: _detach,
    windows.KERNEL_APC_PENDING_DURING_EXIT: _exit,
    windows.KERNEL_SECURITY_CHECK_FAILURE: _list_corrupt,
    windows.IRQL_UNEXPECTED_VALUE: _unexpected_irql,
}
