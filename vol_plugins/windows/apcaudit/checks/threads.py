"""The findings about a thread, one small pure function each."""

from __future__ import annotations

from collections.abc import Callable

from .. import facts as windows
from ..model import Backing, Facts, Finding, QueueName, Severity, Thread
from . import hiding as hiding_checks
from . import lists as list_checks
from .delivery import Reason, deliverable, drains, head_kind, irql, non_empty, reason

ThreadCheck = Callable[[Thread, Facts], "Finding | None"]


def detach_bugcheck(thread: Thread, facts: Facts) -> Finding | None:
    """Detaching would stop the machine with 0x6: attached, and an APC in progress or queued."""
    if thread.members.apc_state_index != 1:
        return None
    causes = []
    if thread.members.kernel_apc_in_progress:
        causes.append("KernelApcInProgress is set")
    if non_empty(thread, QueueName.KERNEL):
        causes.append(f"its kernel APC list is not empty{_first(thread, QueueName.KERNEL)}")
    if non_empty(thread, QueueName.USER):
        causes.append(f"its user APC list is not empty{_first(thread, QueueName.USER)}")
    if not causes:
        return None
    state = f"the thread is attached to {thread.attached or 'another process'} (ApcStateIndex 1) and "
    if drains(thread, facts):
        text = "; it waits at IRQL 0 with APCs enabled, so the drain before the test would empty the list"
        return Finding("detach-bugcheck", Severity.LOW, f"{state}{' and '.join(causes)}{text}")
    text = f"{state}{' and '.join(causes)}: KeUnstackDetachProcess stops the machine with bugcheck 0x6"
    text += " (INVALID_PROCESS_DETACH_ATTEMPT)"
    stopped = facts.bugcheck is not None and facts.bugcheck.code == windows.INVALID_PROCESS_DETACH_ATTEMPT
    if stopped:
        text += ", and this image is of a machine stopped by it"
    if thread.members.state == windows.RUNNING and thread.irql is None and thread.members.wait_irql:
        text += (
            f"; inferred: its last wait began at IRQL {thread.members.wait_irql}, so it seems to hold a fast mutex,"
            " and at APC_LEVEL the drain before the test delivers nothing"
        )
    return Finding("detach-bugcheck", Severity.CRITICAL, text)


def undelivered(thread: Thread, facts: Facts) -> Finding | None:
    """Kernel APCs are queued and signalled, and a reason not to deliver them is visible."""
    if not thread.members.kernel_apc_pending or not non_empty(thread, QueueName.KERNEL):
        return None
    why = reason(thread, facts)
    if why is None:
        return None
    attached = thread.members.apc_state_index == 1
    severity = Severity.HIGH if attached else Severity.MEDIUM
    if not attached and why in (Reason.CRITICAL_REGION, Reason.IN_PROGRESS):
        severity = Severity.LOW
    values = {
        Reason.IRQL: f"the thread stands at IRQL {irql(thread)}, APC_LEVEL or above (a fast mutex, say)",
        Reason.GUARDED_REGION: f"it is in a guarded region (SpecialApcDisable {thread.members.special_apc_disable})",
        Reason.CRITICAL_REGION: f"it is in a critical region (KernelApcDisable {thread.members.kernel_apc_disable})"
        " and a normal kernel APC is next",
        Reason.IN_PROGRESS: "a normal kernel APC is in progress and another is next",
    }
    return Finding(
        "undelivered",
        severity,
        f"a kernel APC is queued and signalled (KernelApcPending 1) but not delivered, reason {why.value}:"
        f" {values[why]}",
    )


def stuck_deliverable(thread: Thread, facts: Facts) -> Finding | None:
    """A waiting thread has a kernel APC whose queuing should have ended the wait."""
    if not non_empty(thread, QueueName.KERNEL) or not deliverable(thread, facts):
        return None
    return Finding(
        "stuck-deliverable",
        Severity.HIGH,
        f"the thread waits at WaitIrql 0 with nothing that forbids delivery, yet a {head_kind(thread)} APC"
        f"{_first(thread, QueueName.KERNEL)} is queued: queuing it should have ended the wait",
    )


def pending_empty(thread: Thread, facts: Facts) -> Finding | None:
    """KernelApcPending is set though nothing is queued, in a thread that is not running."""
    members = thread.members
    if not members.kernel_apc_pending or members.state in (None, windows.RUNNING):
        return None
    if thread.queue(QueueName.KERNEL) is not None or None in (members.apc_kernel_flink, members.apc_kernel_blink):
        return None
    return Finding(
        "pending-empty",
        Severity.MEDIUM,
        "KernelApcPending is 1 but the kernel APC list is intact and empty: an APC was taken off without delivery,"
        " or the image is smeared",
    )


def pending_lost(thread: Thread, facts: Facts) -> Finding | None:
    """A deliverable special kernel APC is queued and KernelApcPending is 0 too."""
    if thread.members.kernel_apc_pending != 0 or head_kind(thread) != "special-kernel":
        return None
    if not non_empty(thread, QueueName.KERNEL) or not deliverable(thread, facts):
        return None
    return Finding(
        "pending-lost",
        Severity.MEDIUM,
        f"a special kernel APC{_first(thread, QueueName.KERNEL)} is queued to a waiting thread but KernelApcPending"
        " is 0: it was linked in without KeInsertQueueApc, or its signal was taken away",
    )


def exit_bugcheck(thread: Thread, facts: Facts) -> Finding | None:
    """A thread that has ended holds what the exit path stops the machine for with 0x20."""
    members = thread.members
    crashed = _stopped_while_exiting(thread, facts)
    if members.state != windows.TERMINATED and not crashed:
        return None
    causes = []
    if non_empty(thread, QueueName.KERNEL):
        causes.append(f"its kernel APC list is not empty{_first(thread, QueueName.KERNEL)}")
    if members.kernel_apc_disable:
        causes.append(f"KernelApcDisable is {members.kernel_apc_disable}")
    if members.special_apc_disable:
        causes.append(f"SpecialApcDisable is {members.special_apc_disable}")
    if not causes and crashed and facts.bugcheck is not None:
        # The exit takes the APCs off the list before it looks whether there were any.
        found, count = facts.bugcheck.parameters[:2]
        causes.append(
            f"a kernel APC was queued to it (LIST_ENTRY {found:#x})"
            if found
            else f"its APC disable count was {count:#x}"
        )
    if not causes:
        return None
    text = f"the thread {'was exiting' if crashed else 'has terminated'} and {' and '.join(causes)}: "
    text += "the exit path stops the machine with bugcheck 0x20 (KERNEL_APC_PENDING_DURING_EXIT)"
    if crashed:
        text += ", and this image is of a machine stopped by it on this thread"
    return Finding("exit-bugcheck", Severity.CRITICAL if crashed else Severity.HIGH, text)


def _stopped_while_exiting(thread: Thread, facts: Facts) -> bool:
    """Tell whether the image is of a machine that bugcheck 0x20 stopped on this thread.

    The exiting thread was on a processor and is marked for termination, which those that ran beside it are not;
    parameter 1 is the LIST_ENTRY of the APC that was found on it.
    """
    bugcheck = facts.bugcheck
    if bugcheck is None or bugcheck.code != windows.KERNEL_APC_PENDING_DURING_EXIT:
        return False
    if facts.crashing_thread is not None:
        return thread.address == facts.crashing_thread
    if thread.processor is None:
        return False
    found = bugcheck.parameters[0] if bugcheck.parameters else 0
    members = thread.members
    return bool(members.terminated) or members.state == windows.TERMINATED or found == members.apc_kernel_flink


def state_mismatch(thread: Thread, facts: Facts) -> Finding | None:
    """ApcStateIndex and the processes in the two APC states contradict one another."""
    members = thread.members
    owner = members.process if members.process is not None else (thread.owner.address if thread.owner else None)
    text = None
    if members.apc_state_index is None:
        return None
    if members.apc_state_index not in (0, 1):
        text = f"ApcStateIndex is {members.apc_state_index}, which is neither 0 nor 1"
    elif owner is None:
        return None
    elif thread.owner is not None and members.process not in (None, thread.owner.address):
        text = f"its Process is {members.process:#x}, but it is on the thread list of {thread.owner.address:#x}"
    elif members.apc_state_index == 1:
        if members.saved_process is not None and members.saved_process != owner:
            text = (
                f"ApcStateIndex is 1 but SavedApcState.Process is {members.saved_process:#x}, not the owner {owner:#x}"
            )
    elif members.apc_process is not None and members.apc_process != owner:
        text = f"ApcStateIndex is 0 but ApcState.Process is {members.apc_process:#x}, not the owner {owner:#x}"
    elif members.saved_process:
        text = f"ApcStateIndex is 0 but SavedApcState.Process is {members.saved_process:#x}, not null"
    return None if text is None else Finding("state-mismatch", Severity.MEDIUM, text)


def not_queueable(thread: Thread, facts: Facts) -> Finding | None:
    """A live thread refuses APCs."""
    members = thread.members
    if members.apc_queueable != 0 or members.state in (None, windows.INITIALIZED, windows.TERMINATED):
        return None
    if thread.idle or members.terminated is None or members.terminated:
        return None
    return Finding(
        "not-queueable",
        Severity.MEDIUM,
        "ApcQueueable is 0 on a thread that is neither ending nor idle: no APC can be queued to it, so it can be"
        " neither suspended nor inspected",
    )


def orphan_start(thread: Thread, facts: Facts) -> Finding | None:
    """A system thread starts in no loaded module."""
    start = thread.members.start_address
    if not start and thread.idle:
        return None
    if start is None or thread.start_backing not in (Backing.NOTHING, Backing.UNLOADED, Backing.USER):
        return None
    where = Backing.NOTHING if thread.start_backing is Backing.UNLOADED else thread.start_backing
    text = f"the system thread's start address {start:#x} lies in {where.value}"
    if thread.start is not None and thread.start.module is not None:
        text += f", but in an image that the list does not have: {thread.start}"
    return Finding("orphan-start", Severity.HIGH, text)


def module_conflict(thread: Thread, facts: Facts) -> Finding | None:
    """A system thread starts where only an entry of the module list that is contradicted claims the address."""
    if thread.start_conflict is None or thread.members.start_address is None:
        return None
    return Finding(
        "module-conflict",
        Severity.HIGH if thread.start_conflict.overlapping else Severity.MEDIUM,
        f"the system thread's start address {thread.members.start_address:#x} lies where the list of modules"
        f" contradicts itself: {thread.start_conflict}",
    )


def unloaded_start(thread: Thread, facts: Facts) -> Finding | None:
    """A system thread starts where a driver was that has been unloaded."""
    if thread.start_backing is not Backing.UNLOADED or thread.start is None:
        return None
    return Finding(
        "unloaded-start",
        Severity.HIGH,
        f"the system thread's start address {thread.start.address:#x} lies in the former range of"
        f" {thread.start.former}, which has been unloaded",
    )


def _first(thread: Thread, name: QueueName) -> str:
    """Name the first APC of a list in parentheses, nothing where it could not be read."""
    queue = thread.queue(name)
    if queue is None or not queue.apcs:
        return ""
    apc = queue.apcs[0]
    return f" (KAPC {apc.address:#x}, KernelRoutine {apc.kernel_routine or 'unreadable'})"


CHECKS: tuple[ThreadCheck, ...] = (
    detach_bugcheck,
    undelivered,
    stuck_deliverable,
    pending_empty,
    pending_lost,
    exit_bugcheck,
    state_mismatch,
    not_queueable,
    orphan_start,
    unloaded_start,
    module_conflict,
    *list_checks.CHECKS,
    *hiding_checks.CHECKS,
)


def check(thread: Thread, facts: Facts) -> tuple[Finding, ...]:
    """Return every finding about the thread."""
    return tuple(finding for test in CHECKS if (finding := test(thread, facts)) is not None)
