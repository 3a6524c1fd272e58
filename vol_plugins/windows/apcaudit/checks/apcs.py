"""The findings about a queued APC, one small pure function each."""

from __future__ import annotations

from .. import windows
from ..findings import Finding, Severity
from ..model import Apc, Backing, Code, Ending, Facts, QueueName, Thread
from .embedded import is_termination


def kernel_normal_in_user_apc(apc: Apc, thread: Thread, facts: Facts) -> Finding | None:
    """A user-mode APC would run a kernel address in user mode."""
    if apc.apc_mode != windows.USER_MODE or apc.normal_routine is None:
        return None
    if apc.normal_routine.backing is Backing.USER or is_termination(apc, facts):
        return None
    # Only threads of WoW64 processes have routines encoded that way; whether a process is one may be unknown.
    process = thread.process_of(apc)
    if windows.is_wow64_encoded(apc.normal_routine.address) and (process is None or process.wow64 is not False):
        return None
    return Finding(
        "kernel-normal-in-user-apc",
        Severity.HIGH,
        f"the user-mode APC's NormalRoutine is the kernel address {_with_address(apc.normal_routine)}",
    )


def mode_mismatch(apc: Apc, thread: Thread, facts: Facts) -> Finding | None:
    """ApcMode is not the mode of the list that the APC hangs on."""
    if apc.apc_mode is None or apc.queue.mode is None or apc.apc_mode == apc.queue.mode:
        return None
    return Finding(
        "mode-mismatch",
        Severity.HIGH,
        f"ApcMode is {apc.apc_mode} on the {apc.queue.value} list, where {apc.queue.mode} belongs",
    )


def thread_mismatch(apc: Apc, thread: Thread, facts: Facts) -> Finding | None:
    """KAPC.Thread is not the thread whose list holds the APC."""
    if apc.thread is None or apc.thread == thread.address:
        return None
    return Finding(
        "thread-mismatch", Severity.HIGH, f"KAPC.Thread is {apc.thread:#x}, not this thread {thread.address:#x}"
    )


def bad_object(apc: Apc, thread: Thread, facts: Facts) -> Finding | None:
    """Type or Size is not that of a KAPC."""
    wrong = []
    if apc.type is not None and apc.type != windows.APC_OBJECT:
        wrong.append(f"Type is {apc.type}, not {windows.APC_OBJECT} (ApcObject)")
    if apc.size is not None and apc.size != facts.apc_size:
        wrong.append(f"Size is {apc.size:#x}, not {facts.apc_size:#x}")
    return Finding("bad-object", Severity.HIGH, "the KAPC's " + " and its ".join(wrong)) if wrong else None


def not_inserted(apc: Apc, thread: Thread, facts: Facts) -> Finding | None:
    """The APC is on a list, but its Inserted is 0."""
    if apc.inserted != 0 or apc.queue is QueueName.OFF_LIST:
        return None
    return Finding("not-inserted", Severity.MEDIUM, "the KAPC is on the list but its Inserted is 0")


def environment_mismatch(apc: Apc, thread: Thread, facts: Facts) -> Finding | None:
    """KAPC.ApcStateIndex does not belong to the APC state that holds the list."""
    index = thread.members.apc_state_index
    if apc.apc_state_index is None or index not in (0, 1) or apc.queue is QueueName.OFF_LIST:
        return None
    # APCs queued between the first and the second attach belong to the state that was the current one then.
    expected = 0 if apc.queue.saved and not apc.nested else index
    if apc.apc_state_index == expected:
        return None
    return Finding(
        "environment-mismatch",
        Severity.MEDIUM,
        f"KAPC.ApcStateIndex is {apc.apc_state_index} on the {apc.queue.value} list of a thread with ApcStateIndex"
        f" {index}, where {expected} belongs",
    )


def order_violation(apc: Apc, thread: Thread, facts: Facts) -> Finding | None:
    """A special kernel APC is queued behind a normal one."""
    if apc.kind != "special-kernel" or apc.queue.mode != windows.KERNEL_MODE:
        return None
    # A thread that attached twice has two saved lists of one name.
    at = apc.position
    holder = next((queue.apcs for queue in thread.queues if queue.apcs[at : at + 1] == (apc,)), ())
    ahead = _first_normal(holder)
    if ahead is None or ahead.position > at:
        return None
    return Finding(
        "order-violation",
        Severity.MEDIUM,
        f"the special kernel APC is queued behind the normal one {ahead.address:#x}, where KiInsertQueueApc puts none",
    )


def _first_normal(apcs: tuple[Apc, ...]) -> Apc | None:
    """Return the first normal kernel APC of a list; the last answer is kept, since each APC of a list asks in turn."""
    global _last_asked
    if _last_asked[0] is not apcs:
        _last_asked = apcs, next((apc for apc in apcs if apc.kind in _NORMAL), None)
    return _last_asked[1]


_last_asked: tuple[tuple[Apc, ...], Apc | None] = (), None

# A special user APC on the kernel list is in its first phase, in which it is queued as a normal one.
_NORMAL = ("normal-kernel", "special-user")


def duplicate_apc(apc: Apc, thread: Thread, facts: Facts) -> Finding | None:
    """The same KAPC hangs on two lists."""
    if apc.also_on is None:
        return None
    return Finding("duplicate-apc", Severity.HIGH, f"the same KAPC also hangs on {apc.also_on}")


def off_list_apc(apc: Apc, thread: Thread, facts: Facts) -> Finding | None:
    """A KAPC says it is queued to the thread, and no list holds it."""
    if apc.queue is not QueueName.OFF_LIST or apc.of_bugcheck:
        return None
    if thread.members.state in (None, windows.TERMINATED):
        return None
    if any(queue.ending is not Ending.CLOSED for queue in thread.queues):
        # It may be on the part of a list that could not be followed; the row says where it was found.
        return None
    text = f"the KAPC says Inserted {apc.inserted} for this live thread, yet no list holds it: it was unlinked"
    text += " without KeRemoveQueueApc"
    if facts.bugcheck is None:
        text += ", or the image was taken while the queue changed"
    return Finding("off-list-apc", Severity.HIGH, text)


def apc_outside_pool(apc: Apc, thread: Thread, facts: Facts) -> Finding | None:
    """The KAPC lies where none is allocated: user space, a kernel stack, the HAL heap, page tables, shared data."""
    if apc.misplaced is None:
        return None
    # Some routines of the kernel keep their KAPC on their own stack, and wait there until it has run.
    known = windows.STACK_APC_ROUTINES
    if apc.on_stack and (facts.is_routine(apc.kernel_routine, *known) or facts.is_routine(apc.normal_routine, *known)):
        return None
    where = "on" if apc.on_stack else "in"
    return Finding("apc-outside-pool", Severity.HIGH, f"the KAPC at {apc.address:#x} lies {where} {apc.misplaced}")


def _with_address(code: Code) -> str:
    return code.text if code.symbol is None else f"{code.address:#x} ({code.text})"
