"""Checks of a thread: its state, the integrity of its lists, and the views that lack it."""

from __future__ import annotations

from .. import windows
from ..findings import Finding, Severity
from ..model import Ending, Facts, Queue, QueueName, Thread, View
from .delivery import non_empty, waiting
from .pending import first_apc

_NAMES = {
    View.LIST: "its process's list",
    View.CID: "the CID table",
    View.CPU: "a processor's control block",
    View.SCAN: "the scan of physical memory",
    View.DUMP: "the dump's header",
}


def hidden_thread(thread: Thread, facts: Facts) -> Finding | None:
    """A live thread is missing from a view that was read to its end."""
    absence = thread.absence
    # A thread in creation is in the CID table before it is in its process's list; a terminated one is a leftover.
    if absence is None or thread.idle or thread.members.state in (windows.INITIALIZED, windows.TERMINATED):
        return None
    holders = " and ".join(name for view, name in _NAMES.items() if view in thread.views)
    text = f"the live thread is held by {holders or 'no other view'} but not by {_NAMES[View(absence.missed_by)]}"
    if absence.neighbours is not None:
        text += f"; {absence.neighbours.value}"
    if absence.stopped:
        text += "; the machine stood still, so this is no smear"
    elif absence.smear:
        text += "; it was created while the image was being taken, which explains it (smear)"
    else:
        text += "; unless the image is smeared, it was hidden"
    if thread.members.terminated:
        text += "; it is marked for termination"
    return Finding("hidden-thread", Severity.LOW if absence.smear else Severity.HIGH, text)


def hidden_process(thread: Thread, facts: Facts) -> Finding | None:
    """A live thread belongs to a process that PsActiveProcessHead does not hold."""
    if thread.owner_listed is not False or thread.idle or thread.owner is None:
        return None
    if thread.members.state in (windows.INITIALIZED, windows.TERMINATED):
        return None
    return Finding(
        "hidden-process",
        Severity.HIGH,
        f"the live thread's process {thread.owner} at {thread.owner.address:#x} is not in PsActiveProcessHead",
    )


def list_broken(thread: Thread, facts: Facts) -> Finding | None:
    """An APC list cannot be followed to its end, or a Blink does not point back."""
    texts = [text for queue in thread.queues if (text := _damage(queue)) is not None]
    return Finding("list-broken", Severity.HIGH, "; ".join(texts)) if texts else None


def list_cycle(thread: Thread, facts: Facts) -> Finding | None:
    """An APC list closes without returning to its head."""
    queues = [queue for queue in thread.queues if queue.ending is Ending.CYCLE]
    if not queues:
        return None
    text = "; ".join(
        f"the {queue.name.value} APC list closes without returning to its head {queue.head:#x}: the entry at"
        f" {queue.ended_at:#x} points back into it after {_entries(queue)}"
        for queue in queues
    )
    return Finding("list-cycle", Severity.HIGH, text)


def list_truncated(thread: Thread, facts: Facts) -> Finding | None:
    """An APC list is longer than the audit follows."""
    queues = [queue for queue in thread.queues if queue.ending is Ending.BOUND]
    if not queues:
        return None
    text = "; ".join(f"the {queue.name.value} APC list goes on after {_entries(queue)}" for queue in queues)
    return Finding("list-truncated", Severity.MEDIUM, f"{text}: the rest was not read")


def _damage(queue: Queue) -> str | None:
    where = f"the {queue.name.value} APC list"
    # An entry that a minidump does not hold is no damage.
    if queue.ending in (Ending.CLOSED, Ending.CYCLE, Ending.BOUND, Ending.ABSENT):
        if queue.broken_at is None:
            return None
        return (
            f"{where} is broken: the Blink of the entry at {queue.broken_at:#x} does not point back to its predecessor"
        )
    text = f"{where} could not be followed past {queue.ended_at:#x} after {_entries(queue)}: {queue.ending.value}"
    return text if queue.led_to is None else f"{text} (Flink {queue.led_to:#x})"


def _entries(queue: Queue) -> str:
    return f"{len(queue.apcs)} entr{'y' if len(queue.apcs) == 1 else 'ies'}"


def exit_bugcheck(thread: Thread, facts: Facts) -> Finding | None:
    """A thread that has ended or is exiting has an APC queued or APCs disabled, for which 0x20 stops the machine."""
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
        # The exit path unlinks the APCs before it tests whether there were any.
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

    The exiting thread was running and is marked for termination, unlike the threads that ran on other processors.
    Parameter 1 is the LIST_ENTRY of the APC that was found on it.
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
    # Since 8.1 the termination request is set in the _KTHREAD before the _ETHREAD is marked.
    if members.terminated is None or members.terminated or members.termination_request:
        return None
    return Finding(
        "not-queueable",
        Severity.MEDIUM,
        "ApcQueueable is 0 on a thread that is neither ending nor idle: no APC can be queued to it, so it can be"
        " neither suspended nor inspected",
    )


def apc_disabled_in_user_wait(thread: Thread, facts: Facts) -> Finding | None:
    """A thread waits on behalf of its program with kernel APCs disabled, a state in which 0x1 stops its return."""
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
