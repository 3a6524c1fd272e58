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
        text = "a normal kernel APC is in progress in it and ends before it can detach (a hard-error pop-up, say)"
        return Finding("detach-bugcheck", Severity.LOW, f"{state}: {text}")
    if delivered_first(thread, facts):
        how = "about to run" if members.state in COMING else "waiting at IRQL 0"
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
    """Say before what event a detach would stop the machine, and why nothing is delivered first."""
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
