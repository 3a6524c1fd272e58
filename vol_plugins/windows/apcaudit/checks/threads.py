"""The findings about a thread, one small pure function each."""

from __future__ import annotations

from collections.abc import Callable

from .. import facts as windows
from ..model import Facts, Finding, QueueName, Severity, Thread
from . import embedded as embedded_checks
from . import hiding as hiding_checks
from . import lists as list_checks
from . import pending as pending_checks
from . import starts as start_checks
from .delivery import non_empty, waiting
from .detach import detach_bugcheck
from .wording import first_apc

ThreadCheck = Callable[[Thread, Facts], "Finding | None"]


def exit_bugcheck(thread: Thread, facts: Facts) -> Finding | None:
    """A thread that has ended holds what the exit path stops the machine for with 0x20."""
    members = thread.members
    crashed = _stopped_while_exiting(thread, facts)
    if members.state != windows.TERMINATED and not crashed:
        return None
    causes = []
    if non_empty(thread, QueueName.KERNEL):
        causes.append(f"its kernel APC list is not empty{first_apc(thread, QueueName.KERNEL)}")
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
    if crashed:
        text += "the exit path stops the machine with bugcheck 0x20 (KERNEL_APC_PENDING_DURING_EXIT), and this image is"
        text += " of a machine that it stopped on this thread"
    else:
        text += "the exit path would have stopped the machine with bugcheck 0x20 (KERNEL_APC_PENDING_DURING_EXIT), so"
        text += " this came after its test, or the memory is no longer the thread's"
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
    if text is None:
        return None
    return Finding("state-mismatch", Severity.MEDIUM, text if facts.stopped else f"{text}{_INSTANT}")


_INSTANT = ", unless the image was taken in the instant of an attach or detach"


def not_queueable(thread: Thread, facts: Facts) -> Finding | None:
    """A live thread refuses APCs."""
    members = thread.members
    if members.apc_queueable != 0 or members.state in (None, windows.TERMINATED) or thread.idle:
        return None
    # Since 8.1 the request is noted in the _KTHREAD before the _ETHREAD is marked.
    if members.terminated is None or members.terminated or members.termination_request:
        return None
    return Finding(
        "not-queueable",
        Severity.MEDIUM,
        "ApcQueueable is 0 on a thread that is neither ending nor idle: no APC can be queued to it, so it can be"
        " neither suspended nor inspected",
    )


def apc_disabled_in_user_wait(thread: Thread, facts: Facts) -> Finding | None:
    """A thread waits on behalf of its program with kernel APCs disabled, in which state it may not return to it."""
    members = thread.members
    if members.system_thread != 0 or not waiting(thread) or members.wait_mode != windows.USER_MODE:
        return None
    if members.wait_reason not in windows.USER_WAIT_REASONS:
        return None
    counters = []
    if members.kernel_apc_disable:
        counters.append(f"KernelApcDisable is {members.kernel_apc_disable}")
    if members.special_apc_disable:
        counters.append(f"SpecialApcDisable is {members.special_apc_disable}")
    if not counters:
        return None
    return Finding(
        "apc-disabled-in-user-wait",
        Severity.MEDIUM,
        f"the thread waits in user mode ({windows.wait_reason_name(members.wait_reason, facts.wait_reasons)}) and"
        f" {' and '.join(counters)}: if it returns to user mode in this state, bugcheck 0x1 (APC_INDEX_MISMATCH) stops"
        " the machine, and until then the thread cannot be suspended",
    )


CHECKS: tuple[ThreadCheck, ...] = (
    detach_bugcheck,
    *pending_checks.CHECKS,
    exit_bugcheck,
    state_mismatch,
    not_queueable,
    apc_disabled_in_user_wait,
    *start_checks.CHECKS,
    *embedded_checks.CHECKS,
    *list_checks.CHECKS,
    *hiding_checks.CHECKS,
)


def check(thread: Thread, facts: Facts) -> tuple[Finding, ...]:
    """Return every finding about the thread."""
    return tuple(finding for test in CHECKS if (finding := test(thread, facts)) is not None)
