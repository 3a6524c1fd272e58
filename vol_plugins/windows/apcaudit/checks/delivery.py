"""Why a kernel APC is still queued, and whether the drain before a detach would deliver it.

The rules are those of KiInsertQueueApc, KiDeliverApc and KeUnstackDetachProcess as ReactOS
(ntoskrnl/ke/apc.c, procobj.c) and Microsoft's "Disabling APCs" give them. Every answer is
three-valued: None is unknown, for want of a member that could not be read.
"""

from __future__ import annotations

from enum import Enum

from .. import facts as windows
from ..model import Apc, Facts, QueueName, Thread


class Reason(str, Enum):
    """What keeps the kernel from delivering the head of a kernel APC list."""

    IRQL = "irql"
    GUARDED_REGION = "guarded-region"
    CRITICAL_REGION = "critical-region"
    IN_PROGRESS = "in-progress"
    OTHER_ENVIRONMENT = "other-environment"
    NOT_SCHEDULED = "not-yet-scheduled"


def member(thread: Thread, name: str, facts: Facts) -> int | None:
    """Return a member's value, 0 where this Windows lacks it because the thing does not exist there."""
    value: int | None = getattr(thread.members, name)
    if value is None and name in windows.ZERO_WHERE_LACKING and name in facts.lacks:
        return 0
    return value


def non_empty(thread: Thread, name: QueueName) -> bool | None:
    """Return whether a list's head points elsewhere than to itself, which is all that the kernel tests."""
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


def waiting(thread: Thread) -> bool | None:
    """Return whether the thread is in a wait, so that WaitIrql is its IRQL."""
    state = thread.members.state
    return None if state is None else state in windows.WAITING_STATES


def irql(thread: Thread) -> int | None:
    """Return the IRQL that the thread stands at: WaitIrql in a wait, else what a crash saved."""
    return thread.members.wait_irql if waiting(thread) else thread.irql


def head_kind(thread: Thread) -> str | None:
    """Return the kind of the kernel APC that would be delivered next, None when it could not be read.

    On a kernel list KiDeliverApc looks at NormalRoutine alone, whatever ApcMode says.
    """
    queue = thread.queue(QueueName.KERNEL)
    routine = queue.apcs[0].normal_routine if queue is not None and queue.apcs else None
    if routine is None:
        return None
    return "normal-kernel" if routine.address else "special-kernel"


def reason(thread: Thread, facts: Facts) -> Reason | None:
    """Return the first visible reason not to deliver the head of the current kernel list."""
    level = irql(thread)
    if level is not None and level >= windows.APC_LEVEL:
        return Reason.IRQL
    if member(thread, "special_apc_disable", facts):
        return Reason.GUARDED_REGION
    if head_kind(thread) == "normal-kernel":
        if thread.members.kernel_apc_disable:
            return Reason.CRITICAL_REGION
        if thread.members.kernel_apc_in_progress:
            return Reason.IN_PROGRESS
    return None


def why_queued(thread: Thread, name: QueueName, facts: Facts) -> str | None:
    """Say why a kernel list is not empty, as the kernel would; None where nothing visible keeps it.

    Args:
        thread: the thread that has the list.
        name: which of its lists.
        facts: what is known of the image.
    """
    if name is QueueName.SAVED_KERNEL:
        return f"{Reason.OTHER_ENVIRONMENT.value}: it is delivered when the thread detaches"
    if name is not QueueName.KERNEL:
        return None
    members = thread.members
    why = reason(thread, facts)
    if why is Reason.IRQL:
        return f"{why.value}: the thread stands at IRQL {irql(thread)}"
    if why is Reason.GUARDED_REGION:
        return f"{why.value}: SpecialApcDisable is {members.special_apc_disable}"
    if why is Reason.CRITICAL_REGION:
        return f"{why.value}: KernelApcDisable is {members.kernel_apc_disable}"
    if why is Reason.IN_PROGRESS:
        return f"{why.value}: a normal kernel APC is being delivered"
    if members.state in _COMING:
        return f"{Reason.NOT_SCHEDULED.value}: it is delivered when the thread runs"
    if members.state == windows.RUNNING:
        return "the thread is running: it may be about to be delivered"
    return None


# States of a thread that is about to run, and is interrupted by the APC when it does.
_COMING = (windows.READY, windows.STANDBY, windows.TRANSITION, windows.DEFERRED_READY, windows.INITIALIZED)


def deliverable(thread: Thread, facts: Facts) -> bool | None:
    """Return whether the queuing of the kernel list's head should have ended the thread's wait.

    KiInsertQueueApc ends a wait at WaitIrql 0 outside a guarded region for a special kernel APC, and
    for a normal one when kernel APCs are enabled and none is in progress.
    """
    kind = head_kind(thread)
    conditions: list[bool | None] = [
        # A thread that is still some processor's current one has not gone to wait yet.
        waiting(thread) if thread.processor is None else False,
        _zero(thread.members.wait_irql),
        _zero(member(thread, "special_apc_disable", facts)),
        _zero(member(thread, "special_apc_in_progress", facts)),
        None if kind is None else True,
    ]
    if kind == "normal-kernel":
        conditions.append(_zero(thread.members.kernel_apc_disable))
        conditions.append(_zero(thread.members.kernel_apc_in_progress))
    return every(conditions)


def drains(thread: Thread, facts: Facts) -> bool | None:
    """Return whether the drain that precedes the test in KeUnstackDetachProcess would empty the queue."""
    queue = thread.queue(QueueName.KERNEL)
    apcs: tuple[Apc, ...] = queue.apcs if queue is not None else ()
    conditions: list[bool | None] = [
        waiting(thread),
        _zero(thread.members.wait_irql),
        _zero(member(thread, "special_apc_disable", facts)),
        _zero(thread.members.kernel_apc_disable),
        _zero(thread.members.kernel_apc_in_progress),
        _not(non_empty(thread, QueueName.USER)),
        queue is None or queue.intact,
    ]
    conditions.extend(None if apc.kind is None else apc.kind != "user" for apc in apcs)
    return every(conditions)


def every(conditions: list[bool | None]) -> bool | None:
    """Return False when one is False, else None when one is unknown, else True."""
    if any(condition is False for condition in conditions):
        return False
    return None if None in conditions else True


def _zero(value: int | None) -> bool | None:
    return None if value is None else value == 0


def _not(value: bool | None) -> bool | None:
    return None if value is None else not value
