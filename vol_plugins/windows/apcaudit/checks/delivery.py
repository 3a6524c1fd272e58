"""Why a kernel APC is still queued, and whether it would be delivered before a detach.

The rules are those of KiInsertQueueApc, KiDeliverApc and KeUnstackDetachProcess as ReactOS (ntoskrnl/ke/apc.c,
procobj.c) and Microsoft's "Disabling APCs" give them. Answers may be None, which is unknown, where a member that they
depend on could not be read.
"""

from __future__ import annotations

from enum import Enum

from .. import windows
from ..model import Apc, Facts, QueuedThread, QueueName
from .embedded import is_own, is_special_user, is_termination, queued_kernel_apcs, why_own_queued


class Reason(str, Enum):
    """What keeps the kernel from delivering the first APC of a kernel APC list."""

    PAGE_FAULT = "page-fault"
    SPECIAL_IN_PROGRESS = "special-in-progress"
    IRQL = "irql"
    GUARDED_REGION = "guarded-region"
    CRITICAL_REGION = "critical-region"
    IN_PROGRESS = "in-progress"


ORDINARY = frozenset({Reason.PAGE_FAULT, Reason.SPECIAL_IN_PROGRESS, Reason.CRITICAL_REGION, Reason.IN_PROGRESS})
"""Reasons for which `undelivered` is low even if the thread waits."""


def member(thread: QueuedThread, name: str, facts: Facts) -> int | None:
    """Return a member's value, None if it cannot be read.

    It is 0 if this Windows has neither the member nor what it counts or marks, such as guarded regions.
    """
    value: int | None = getattr(thread.members, name)
    if value is None and name in windows.ZERO_WHERE_LACKING and name in facts.lacks:
        return 0
    return value


def non_empty(thread: QueuedThread, name: QueueName) -> bool | None:
    """Return whether a list's Flink points elsewhere than to its head, which is all that the kernel tests."""
    queue = thread.queue(name)
    flink: int | None = getattr(thread.members, _FLINK[name])
    if flink is None:
        return None
    return queue is not None and flink != queue.head


_FLINK = {
    QueueName.KERNEL: "apc_kernel_flink",
    QueueName.USER: "apc_user_flink",
    QueueName.SAVED_KERNEL: "saved_kernel_flink",
    QueueName.SAVED_USER: "saved_user_flink",
}


def waiting(thread: QueuedThread) -> bool | None:
    """Return whether the thread is in a wait, so that WaitIrql is its IRQL."""
    state = thread.members.state
    return None if state is None else state in windows.WAITING_STATES


def irql(thread: QueuedThread, facts: Facts) -> int | None:
    """Return the IRQL of a thread: WaitIrql in a wait, else the IRQL that a crash saved, None if unknown.

    The saved IRQL says nothing where the code that stopped the machine had raised it.
    """
    if waiting(thread):
        return thread.members.wait_irql
    if facts.bugcheck is not None and facts.bugcheck.code in windows.BUGCHECK_IRQLS:
        return None
    return thread.irql


def was_preempted(thread: QueuedThread, facts: Facts) -> bool:
    """Tell whether WaitReason says that the thread was preempted. WaitIrql 1 is then no evidence of a lock."""
    reason = thread.members.wait_reason
    return reason in windows.PREEMPTED_REASONS and reason < len(facts.wait_reasons)


def knows_preemption(facts: Facts) -> bool:
    """Tell whether WaitReason shows preemption on this Windows, which it does not on XP."""
    return len(facts.wait_reasons) > min(windows.PREEMPTED_REASONS)


def head_kind(thread: QueuedThread, facts: Facts) -> str | None:
    """Return the kind of the kernel APC that would be delivered next; the kernel's own KAPCs are left out.

    None is unknown, or no APC. On a kernel list KiDeliverApc looks at NormalRoutine alone, whatever ApcMode is.
    """
    queue = thread.queue(QueueName.KERNEL)
    # Only up to the first one: this is asked again for each APC of what may be a very long list.
    first = next((apc for apc in queue.apcs if not is_own(apc, facts)), None) if queue is not None else None
    routine = None if first is None else first.normal_routine
    if routine is None:
        return None
    return "normal-kernel" if routine.address else "special-kernel"


def has_normal(thread: QueuedThread) -> bool | None:
    """Return whether a normal kernel APC is queued, None if one may be among those that could not be read."""
    queue = thread.queue(QueueName.KERNEL)
    if queue is None:
        return False
    kinds = [None if apc.normal_routine is None else bool(apc.normal_routine.address) for apc in queue.apcs]
    if True in kinds:
        return True
    return None if None in kinds or not queue.intact else False


def reason(thread: QueuedThread, facts: Facts) -> Reason | None:
    """Return the first visible reason why the first APC of the current kernel list is not delivered."""
    members = thread.members
    if waiting(thread):
        if members.wait_reason in windows.PAGE_FAULT_REASONS:
            return Reason.PAGE_FAULT
        if members.special_apc_in_progress:
            return Reason.SPECIAL_IN_PROGRESS
    level = irql(thread, facts)
    # After a crash, an IRQL above APC_LEVEL belongs to the code that crashed. It does not show that the thread blocked
    # APCs before.
    if level is not None and (level >= windows.APC_LEVEL if waiting(thread) else level == windows.APC_LEVEL):
        return Reason.IRQL
    if member(thread, "special_apc_disable", facts):
        return Reason.GUARDED_REGION
    if members.special_apc_in_progress:
        return Reason.SPECIAL_IN_PROGRESS
    if head_kind(thread, facts) == "normal-kernel":
        if members.kernel_apc_disable:
            return Reason.CRITICAL_REGION
        if members.kernel_apc_in_progress:
            return Reason.IN_PROGRESS
    return None


def why_queued(apc: Apc, thread: QueuedThread, facts: Facts) -> str | None:
    """Say why an APC is still on its list; None where nothing visible keeps it there."""
    members = thread.members
    if is_termination(apc, facts):
        return "a termination is in progress: the thread ends when it next returns to user mode"
    if apc.queue is QueueName.SAVED_KERNEL:
        return "other-environment: it is delivered when the thread detaches"
    if is_own(apc, facts):
        return why_own_queued(apc, thread, _blocked(thread, facts))
    if apc.queue is not QueueName.KERNEL:
        return None
    if is_special_user(apc, facts) and apc.apc_mode == windows.KERNEL_MODE and members.kernel_apc_pending == 0:
        return "a special user APC in its first phase, which waits for kernel APCs to be enabled"
    why = reason(thread, facts)
    reasons = {
        Reason.PAGE_FAULT: "the thread waits for a page to be read in",
        Reason.SPECIAL_IN_PROGRESS: "a special kernel APC is being delivered",
        Reason.IRQL: f"the thread is at IRQL {irql(thread, facts)}",
        Reason.GUARDED_REGION: f"SpecialApcDisable is {members.special_apc_disable}",
        Reason.CRITICAL_REGION: f"KernelApcDisable is {members.kernel_apc_disable}",
        Reason.IN_PROGRESS: "a normal kernel APC is being delivered",
    }
    if why is not None:
        return f"{why.value}: {reasons[why]}"
    if members.state in ABOUT_TO_RUN:
        return "not-yet-scheduled: it is delivered when the thread runs below APC_LEVEL"
    if members.state == windows.RUNNING:
        return "the thread is running: the APC may be delivered at any instruction"
    return None


def _blocked(thread: QueuedThread, facts: Facts) -> str | None:
    """Say what keeps a waiting thread from running a normal kernel APC; None where nothing does."""
    members = thread.members
    if not waiting(thread):
        return None
    if (members.wait_irql or 0) >= windows.APC_LEVEL:
        return f"WaitIrql is {members.wait_irql}"
    for name, value in (
        ("SpecialApcDisable", member(thread, "special_apc_disable", facts)),
        ("KernelApcDisable", members.kernel_apc_disable),
        ("KernelApcInProgress", members.kernel_apc_in_progress),
    ):
        if value:
            return f"{name} is {value}"
    return None


ABOUT_TO_RUN = (windows.READY, windows.STANDBY, windows.TRANSITION, windows.DEFERRED_READY, windows.INITIALIZED)
"""States before the next run: a queued kernel APC is delivered when a processor switches to the thread."""


def deliverable(thread: QueuedThread, facts: Facts) -> bool | None:
    """Return whether queuing the first APC of the kernel list should have ended the thread's wait.

    KiInsertQueueApc ends a wait at WaitIrql 0 outside a guarded region for a special kernel APC, and for a normal one
    when kernel APCs are enabled and none is in progress. The thread must not be a processor's current thread, and no
    special kernel APC may be in progress. The kernel's own KAPCs are left out: it ends no wait for them. None if a
    value that decides this is unknown; of an APC that a minidump lacks the kind is, which decides nothing while kernel
    APCs are enabled.
    """
    apcs = queued_kernel_apcs(thread, facts)
    kind = head_kind(thread, facts)
    conditions: list[bool | None] = [
        # A thread that is still a processor's current thread has not begun its wait yet.
        waiting(thread) if thread.processor is None else False,
        _zero(thread.members.wait_irql),
        _zero(member(thread, "special_apc_disable", facts)),
        _zero(member(thread, "special_apc_in_progress", facts)),
        None if apcs is None else bool(apcs),
    ]
    normal = [_zero(thread.members.kernel_apc_disable), _zero(thread.members.kernel_apc_in_progress)]
    if kind == "normal-kernel":
        conditions += normal
    elif apcs and kind is None:
        # Where a normal APC would be delivered, an APC of either kind would, unless it is one of the kernel's own.
        conditions.append(True if apcs[0].absent and apcs[0].member is None and every(normal) else None)
    return every(conditions)


def is_stuck(thread: QueuedThread, facts: Facts) -> bool:
    """Tell whether a thread still waits although a kernel APC was queued that should have ended the wait."""
    return bool(non_empty(thread, QueueName.KERNEL)) and bool(deliverable(thread, facts))


def delivered_first(thread: QueuedThread, facts: Facts) -> bool | None:
    """Return whether the APCs that are queued to an attached thread are delivered before the thread can detach.

    True only if the thread is about to run or waits at IRQL 0, KernelApcPending is 1, SpecialApcDisable is 0, the user
    list is empty, the kernel list is intact and, if a normal APC is queued, KernelApcDisable is 0. None if a value that
    decides this is unknown.
    """
    members = thread.members
    about_to_run = None if members.state is None else members.state in ABOUT_TO_RUN
    # WaitIrql of a preempted thread is APC_LEVEL; it continues at the IRQL that it ran at, which is not recorded.
    ready: bool | None = True
    if about_to_run and knows_preemption(facts) and not was_preempted(thread, facts):
        ready = _zero(members.wait_irql)
    normal = has_normal(thread)
    queue = thread.queue(QueueName.KERNEL)
    conditions: list[bool | None] = [
        ready if about_to_run else every([waiting(thread), _zero(members.wait_irql)]),
        _zero(member(thread, "special_apc_disable", facts)),
        None if members.kernel_apc_pending is None else bool(members.kernel_apc_pending),
        _not(non_empty(thread, QueueName.USER)),
        queue is None or queue.undamaged,
        _either(_not(normal), _zero(members.kernel_apc_disable)),
    ]
    return every(conditions)


def every(conditions: list[bool | None]) -> bool | None:
    """Return False if any condition is False, else None if any is unknown, else True."""
    if any(condition is False for condition in conditions):
        return False
    return None if None in conditions else True


def _either(one: bool | None, other: bool | None) -> bool | None:
    if one or other:
        return True
    return None if one is None or other is None else False


def _zero(value: int | None) -> bool | None:
    return None if value is None else value == 0


def _not(value: bool | None) -> bool | None:
    return None if value is None else not value
