"""Checks of pending APCs: undelivered or lost ones, KernelApcPending that contradicts the list, fatal detaches."""

from __future__ import annotations

from .. import windows
from ..findings import Finding, Severity
from ..model import Apc, Facts, QueueName, Thread
from .delivery import (
    ABOUT_TO_RUN,
    ORDINARY,
    Reason,
    delivered_first,
    head_kind,
    irql,
    is_stuck,
    knows_preemption,
    non_empty,
    reason,
    waiting,
    was_preempted,
)
from .embedded import queued_kernel_apcs


def first_apc(thread: Thread, name: QueueName) -> str:
    """Name the first APC of a list in parentheses; empty where it could not be read."""
    queue = thread.queue(name)
    if queue is None or not queue.apcs:
        return ""
    return named_apc(queue.apcs[0])


def named_apc(apc: Apc) -> str:
    """Name an APC in parentheses."""
    if apc.absent:
        return f" (KAPC {apc.address:#x}, which is not in this dump)"
    return f" (KAPC {apc.address:#x}, KernelRoutine {apc.kernel_routine or 'unreadable'})"


def undelivered(thread: Thread, facts: Facts) -> Finding | None:
    """Kernel APCs are queued and signalled, and a reason not to deliver them is visible."""
    if not thread.members.kernel_apc_pending or not non_empty(thread, QueueName.KERNEL):
        return None
    why = reason(thread, facts)
    if why is None:
        return None
    severity = Severity.LOW
    if waiting(thread) and why not in ORDINARY:
        severity = Severity.HIGH if thread.members.apc_state_index == 1 else Severity.MEDIUM
    values = {
        Reason.PAGE_FAULT: "it waits for a page to be read in",
        Reason.SPECIAL_IN_PROGRESS: "a special kernel APC is in progress",
        Reason.IRQL: f"the thread is at IRQL {irql(thread, facts)}, APC_LEVEL or above (a fast mutex, say)",
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
    if not is_stuck(thread, facts):
        return None
    apcs = queued_kernel_apcs(thread, facts) or ()
    kind = (head_kind(thread, facts) or "").replace("-", " ")
    text = (
        f"the thread waits at WaitIrql 0 and nothing forbids delivery, yet {f'a {kind}' if kind else 'an'} APC"
        f"{named_apc(apcs[0]) if apcs else ''} is queued: queuing it should have ended the wait"
    )
    if facts.stopped:
        return Finding("stuck-deliverable", Severity.HIGH, text)
    text += ", unless the image was taken in that instant"
    if thread.only_stuck:
        return Finding("stuck-deliverable", Severity.MEDIUM, f"{text}; no other thread of this live image is like it")
    return Finding("stuck-deliverable", Severity.HIGH, text)


def pending_empty(thread: Thread, facts: Facts) -> Finding | None:
    """KernelApcPending is set though nothing is queued, in a thread that neither runs nor has ended."""
    members = thread.members
    if not members.kernel_apc_pending or members.state in (None, windows.RUNNING, windows.TERMINATED):
        return None
    if thread.queue(QueueName.KERNEL) is not None or None in (members.apc_kernel_flink, members.apc_kernel_blink):
        return None
    return Finding(
        "pending-empty",
        Severity.MEDIUM,
        "KernelApcPending is 1 but the kernel APC list is intact and empty: an APC was taken off without delivery"
        + ("" if facts.stopped else ", or the image is smeared"),
    )


def pending_lost(thread: Thread, facts: Facts) -> Finding | None:
    """A special kernel APC is queued that could be delivered, but KernelApcPending is 0."""
    if thread.members.kernel_apc_pending != 0 or head_kind(thread, facts) != "special-kernel":
        return None
    if not is_stuck(thread, facts):
        return None
    apcs = queued_kernel_apcs(thread, facts) or ()
    return Finding(
        "pending-lost",
        Severity.MEDIUM,
        f"a special kernel APC{named_apc(apcs[0]) if apcs else ''} is queued to a waiting thread but KernelApcPending"
        " is 0: it was linked in without KeInsertQueueApc, or its signal was taken away",
    )


def lost_apc(thread: Thread, facts: Facts) -> Finding | None:
    """An APC was queued for an environment that the thread has left; the next attach overwrites the list."""
    if not thread.lost or thread.members.apc_state_index != 0:
        return None
    named = " and".join(named_apc(apc) for apc in thread.lost)
    return Finding(
        "lost-apc",
        Severity.HIGH,
        f"SavedApcState, which a thread at ApcStateIndex 0 does not use, holds an APC that says it is queued{named}:"
        " it was queued for an attach that has ended. Nothing delivers it, and the next attach overwrites the list",
    )


def detach_bugcheck(thread: Thread, facts: Facts) -> Finding | None:
    """An attached thread has an APC in progress or queued: detaching in that state stops the machine with 0x6."""
    members = thread.members
    if members.apc_state_index != 1:
        return None
    causes = []
    if members.kernel_apc_in_progress:
        causes.append("KernelApcInProgress is set")
    kernel, user = non_empty(thread, QueueName.KERNEL), non_empty(thread, QueueName.USER)
    if kernel:
        causes.append(f"its kernel APC list is not empty{first_apc(thread, QueueName.KERNEL)}")
    if user:
        causes.append(f"its user APC list is not empty{first_apc(thread, QueueName.USER)}")
    if not causes:
        return None
    state = f"the thread is attached to {_attached_to(thread)} (ApcStateIndex 1) and {' and '.join(causes)}"
    stops = "KeUnstackDetachProcess stops the machine with bugcheck 0x6 (INVALID_PROCESS_DETACH_ATTEMPT)"
    if _is_proven(thread, facts):
        text = f"{state}: {stops}, and this image is of a machine that it stopped on this thread"
        return Finding("detach-bugcheck", Severity.CRITICAL, text + _seems_to_hold(thread, facts))
    if not kernel and not user and members.state not in (None, windows.RUNNING):
        text = "a normal kernel APC is in progress in it and ends before it can detach (a hard-error pop-up, say)"
        return Finding("detach-bugcheck", Severity.LOW, f"{state}: {text}")
    if delivered_first(thread, facts):
        how = "about to run" if members.state in ABOUT_TO_RUN else "waiting at IRQL 0"
        text = f"it is {how} with KernelApcPending 1, so the APC is delivered before the thread can detach"
        return Finding("detach-bugcheck", Severity.LOW, f"{state}; {text}")
    text = f"{state}: {stops} if it detaches {_before_what(thread, facts)}"
    return Finding("detach-bugcheck", Severity.HIGH, text + _seems_to_hold(thread, facts))


def _attached_to(thread: Thread) -> str:
    if thread.attached is not None:
        return str(thread.attached)
    owner = thread.members.process if thread.members.process is not None else thread.owner and thread.owner.address
    if owner is not None and thread.members.apc_process == owner:
        return "its own process within another attach"
    return "another process"


def _before_what(thread: Thread, facts: Facts) -> str:
    """Say before which event, or in which state, a detach would stop the machine."""
    members = thread.members
    why = reason(thread, facts)
    if why is Reason.IRQL:
        return "before it lowers its IRQL"
    if why is Reason.GUARDED_REGION:
        return "before it leaves its guarded region"
    if why is Reason.CRITICAL_REGION:
        return "before it leaves its critical region"
    if members.kernel_apc_pending == 0 and non_empty(thread, QueueName.KERNEL):
        return "in this state, since with KernelApcPending 0 nothing is drained before the test"
    if members.state == windows.RUNNING and not facts.stopped:
        what = "be delivered" if non_empty(thread, QueueName.KERNEL) else "end"
        return f"in this state; in a live image the APC may {what} in the next instruction"
    return "in this state"


def _seems_to_hold(thread: Thread, facts: Facts) -> str:
    """Say that WaitIrql, of a running thread's last wait, suggests a lock, where the thread's own IRQL is not known."""
    members = thread.members
    level = members.wait_irql
    if members.state != windows.RUNNING or irql(thread, facts) is not None or not level:
        return ""
    if was_preempted(thread, facts):
        return ""
    seems = "seems to hold" if knows_preemption(facts) else "may hold"
    return (
        f"; inferred: its last wait began at IRQL {level}, so it {seems} a fast mutex, and at APC_LEVEL the drain"
        " before the test delivers nothing"
    )


def _is_proven(thread: Thread, facts: Facts) -> bool:
    """Tell whether bugcheck 0x6 stopped the machine on this thread."""
    bugcheck = facts.bugcheck
    stopped = bugcheck is not None and bugcheck.code == windows.INVALID_PROCESS_DETACH_ATTEMPT
    return stopped and facts.crashing_thread is not None and thread.address == facts.crashing_thread
