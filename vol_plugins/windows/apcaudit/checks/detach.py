"""detach-bugcheck: whether an attached thread can detach without stopping the machine."""

from __future__ import annotations

from .. import facts as windows
from ..model import Facts, Finding, QueueName, Severity, Thread
from .delivery import (
    COMING,
    Reason,
    delivered_first,
    irql,
    knows_preemption,
    non_empty,
    reason,
    was_preempted,
)
from .wording import first_apc


def detach_bugcheck(thread: Thread, facts: Facts) -> Finding | None:
    """Detaching would stop the machine with 0x6: attached, and an APC in progress or queued."""
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
        text = "a normal kernel APC has come to it, which ends before the thread can detach (a hard-error pop-up, say)"
        return Finding("detach-bugcheck", Severity.LOW, f"{state}: {text}")
    if delivered_first(thread, facts):
        how = "about to run" if members.state in COMING else "waiting at IRQL 0"
        text = f"it is {how} with KernelApcPending 1, so the APC is delivered before the thread can detach"
        return Finding("detach-bugcheck", Severity.LOW, f"{state}; {text}")
    text = f"{state}: {stops} if it detaches in this state{_why_not_delivered(thread, facts)}"
    return Finding("detach-bugcheck", Severity.HIGH, text + _seems_to_hold(thread, facts))


def _attached_to(thread: Thread) -> str:
    if thread.attached is not None:
        return str(thread.attached)
    owner = thread.members.process if thread.members.process is not None else thread.owner and thread.owner.address
    if owner is not None and thread.members.apc_process == owner:
        return "its own process within another attach"
    return "another process"


def _why_not_delivered(thread: Thread, facts: Facts) -> str:
    """Say what keeps the APC from being delivered before a detach, as far as the image shows it."""
    members = thread.members
    why = reason(thread, facts)
    if why in (Reason.IRQL, Reason.GUARDED_REGION):
        return f" and before it {'lowers its IRQL' if why is Reason.IRQL else 'leaves its guarded region'}"
    if members.kernel_apc_pending == 0 and non_empty(thread, QueueName.KERNEL):
        return ", which nothing prevents: KernelApcPending is 0, so nothing is drained before the test"
    if why is Reason.CRITICAL_REGION:
        return " and before it leaves its critical region"
    if members.state == windows.RUNNING and not facts.stopped:
        return "; in a live image the APC may be delivered in the next instruction"
    return ""


def _seems_to_hold(thread: Thread, facts: Facts) -> str:
    """Say that a running thread's last wait tells of a lock, where nothing else tells its IRQL."""
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
    """Tell the thread that bugcheck 0x6 stopped the machine on."""
    bugcheck = facts.bugcheck
    stopped = bugcheck is not None and bugcheck.code == windows.INVALID_PROCESS_DETACH_ATTEMPT
    return stopped and facts.crashing_thread is not None and thread.address == facts.crashing_thread
