"""The findings about APCs that wait though nothing says why, are missing, or were queued where none is delivered."""

from __future__ import annotations

from .. import facts as windows
from ..model import Facts, Finding, QueueName, Severity, Thread
from .delivery import ORDINARY, Reason, head_kind, irql, is_stuck, non_empty, reason, waiting
from .embedded import queued_kernel_apcs
from .wording import named_apc


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
        f"the thread waits at WaitIrql 0 and nothing forbids delivery, yet a {kind} APC"
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
    """A deliverable special kernel APC is queued and KernelApcPending is 0 too."""
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


CHECKS = (undelivered, stuck_deliverable, pending_empty, pending_lost, lost_apc)
