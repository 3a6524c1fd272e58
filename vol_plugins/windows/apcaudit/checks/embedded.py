"""The KAPCs that are members of a thread: which of them may stay queued for hours, and what they must hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product

from .. import windows
from ..findings import Finding, Severity
from ..formats.layout import EmbeddedKapc
from ..members import ThreadMembers
from ..model import Apc, Facts, Queue, QueuedThread, QueueName
from ..windows import EMBEDDED_APCS, EmbeddedApc

Routines = tuple[frozenset[int] | None, frozenset[int] | None, frozenset[int] | None]
"""The addresses that KernelRoutine, RundownRoutine and NormalRoutine may have; None where the symbols lack them."""


def is_own(apc: Apc, facts: Facts) -> bool:
    """Tell whether a KAPC is one of the kernel's own, which may stay queued for hours whatever the thread waits for.

    Such a KAPC is a member of the thread and has the NormalRoutine of that member. A suspended thread that waits keeps
    SchedulerApc queued without being woken (KiSuspendThread of 8.1 to 11), and UpdateTebApc stays queued until the
    thread runs.
    """
    # Asked several times of each APC; nearly none is a member of a thread.
    return apc.member is not None and any(
        row.own is not None and row.member == apc.member and facts.is_routine(apc.normal_routine, row.own)
        for row in EMBEDDED_APCS
    )


def is_special_user(apc: Apc, facts: Facts) -> bool:
    """Tell whether an APC is a special user APC, in either of its phases."""
    return facts.is_routine(apc.kernel_routine, windows.SPECIAL_USER_APC_ROUTINE)


def is_termination(apc: Apc, facts: Facts) -> bool:
    """Tell whether an APC is the user-mode APC that ends its thread at the next return to user mode."""
    pairs = windows.TERMINATION_APCS
    routines = any(
        facts.is_routine(apc.kernel_routine, kernel) and facts.is_routine(apc.normal_routine, normal)
        for kernel, normal in pairs
    )
    # SchedulerApc, when it is turned into this APC, is still a member of the thread.
    return routines and (apc.member is not None or not facts.is_routine(apc.normal_routine, pairs[1][1]))


def not_own(queue: Queue | None, facts: Facts) -> tuple[Apc, ...] | None:
    """Return the APCs of a list that are not the kernel's own, None if unknown.

    It is unknown when none was read and the list could not be followed to its end.
    """
    if queue is None:
        return ()
    foreign = tuple(apc for apc in queue.apcs if not is_own(apc, facts))
    return foreign if foreign or queue.intact else None


def allowed_routines(row: EmbeddedApc, routines: Mapping[str, int]) -> Routines:
    """Return the addresses that the routines of an embedded KAPC may have; None where this kernel lacks a symbol."""
    kernel, rundown, normal = (
        frozenset(0 if not name else routines[name] for name in names)
        if all(not name or name in routines for name in names)
        else None
        for names in (row.kernel, row.rundown, row.normal)
    )
    return kernel, rundown, normal


def find_defects(address: int, members: ThreadMembers, facts: Facts) -> list[str]:
    """Describe the members of a thread's embedded KAPCs that do not hold what this kernel puts there."""
    found = []
    for row in EMBEDDED_APCS:
        if row.member not in facts.embedded:
            continue
        kind, size, thread, *routines = (
            getattr(members, f"{row.prefix}_{name}")
            for name in ("type", "size", "thread", "kernel", "rundown", "normal")
        )
        if row.may_be_zero and not any((kind, size, thread, *routines)):
            continue
        if kind not in (None, windows.APC_OBJECT):
            found.append(f"{row.member}.Type is {kind}, not {windows.APC_OBJECT} (ApcObject)")
        if size not in (None, facts.apc_size):
            found.append(f"{row.member}.Size is {size:#x}, not {facts.apc_size:#x}")
        if thread not in (None, address):
            found.append(f"{row.member}.Thread is {thread:#x}, not this thread")
        allowed = allowed_routines(row, facts.routines)
        names = zip(("KernelRoutine", "RundownRoutine", "NormalRoutine"), routines, allowed, strict=True)
        for name, routine, addresses in names:
            if routine is not None and addresses is not None and routine not in addresses:
                found.append(f"{row.member}.{name} is {routine:#x}")
    return found


UsualBytes = Callable[[int, bytes], bool]
"""Takes an _ETHREAD's virtual address and bytes; tells whether its embedded KAPCs hold what this kernel puts there."""


def usual_bytes(kapcs: Sequence[EmbeddedKapc], pointer_size: int, facts: Facts) -> UsualBytes:
    """Make a fast test of a thread's embedded KAPCs; True is unaltered, False asks for find_defects.

    It compares the bytes of Type, Size, Thread and the routines, since decoding a dozen members of every thread would
    cost more than all other tests together.
    """
    by_member = {kapc.member: kapc for kapc in kapcs}
    tests = []
    for row in EMBEDDED_APCS:
        if row.member not in facts.embedded:
            continue
        kapc, routines = by_member.get(row.member), allowed_routines(row, facts.routines)
        if kapc is None or None in routines:
            return lambda _address, _thread: False
        tests.append(_usual(kapc, row, routines, pointer_size, facts.apc_size))
    if len(tests) == 2:
        # The newest kernels have two; all() over them would take twice as long.
        first, second = tests
        return lambda address, thread: first(address, thread) and second(address, thread)
    return tests[0] if len(tests) == 1 else lambda address, thread: all(test(address, thread) for test in tests)


def _usual(kapc: EmbeddedKapc, row: EmbeddedApc, routines: Routines, pointer_size: int, apc_size: int) -> UsualBytes:
    # Leave out addresses that do not fit into a pointer, which a damaged symbol file may have.
    top = 1 << 8 * pointer_size
    allowed = ({address for address in addresses or () if address < top} for addresses in routines)
    usual = frozenset(
        b"".join(each.to_bytes(pointer_size, "little") for each in combination) for combination in product(*allowed)
    )
    # Local names, since the test runs for every thread.
    kind, size, thread_at, routines_at = kapc.type, kapc.size, kapc.thread, kapc.routines
    thread_end, routines_end = thread_at + pointer_size, routines_at + 3 * pointer_size
    start, end, may_be_zero, apc_object = kapc.start, kapc.end, row.may_be_zero, windows.APC_OBJECT

    def test(address: int, thread: bytes) -> bool:
        if (
            thread[routines_at:routines_end] in usual
            and thread[kind] == apc_object
            and thread[size] == apc_size
            and thread[thread_at:thread_end] == address.to_bytes(pointer_size, "little")
        ):
            return True
        return may_be_zero and not any(thread[start:end])

    return test


def embedded_apc_altered(thread: QueuedThread, facts: Facts) -> Finding | None:
    """A KAPC that is a member of a live thread holds what the kernel does not put there."""
    if thread.members.state in (None, windows.INITIALIZED, windows.TERMINATED):
        return None
    wrong = find_defects(thread.address, thread.members, facts)
    if not wrong:
        return None
    return Finding(
        "embedded-apc-altered",
        Severity.HIGH,
        f"a KAPC that is part of the thread itself holds what this kernel does not put there: {'; '.join(wrong)}",
    )


def suspended_but_not(thread: QueuedThread, facts: Facts) -> Finding | None:
    """SuspendCount says that the thread is suspended, but nothing suspends it."""
    members = thread.members
    if not members.suspend_count or members.state in (None, windows.RUNNING, windows.INITIALIZED, windows.TERMINATED):
        return None
    held = members.wait_state, members.kernel_apc_in_progress, members.suspend_apc_inserted
    if None in held or any(held[1:]) or is_suspended_in_place(members):
        return None
    if members.special_apc_in_progress or (
        members.special_apc_in_progress is None and "special_apc_in_progress" not in facts.lacks
    ):
        return None
    return Finding(
        "suspended-but-not",
        Severity.LOW,
        f"SuspendCount is {members.suspend_count}, yet the thread is not suspended in place (WaitRegister.State"
        f" {members.wait_state}), and its suspending APC is neither running nor queued",
    )


def is_suspended_in_place(members: ThreadMembers) -> bool:
    """Tell whether a thread is suspended within its wait: Windows 8.1 and later do not wake it for that."""
    state = members.wait_state
    return state is not None and windows.FIRST_SUSPEND_STATE <= state <= windows.LAST_SUSPEND_STATE


def why_own_queued(apc: Apc, thread: QueuedThread, blocked: str | None) -> str:
    """Say why a KAPC of the kernel's own is still in a thread's list.

    Args:
        apc: the KAPC.
        thread: the thread that it is part of.
        blocked: what keeps the thread from running a normal kernel APC, None where nothing does.
    """
    members = thread.members
    if apc.member == "UpdateTebApc":
        return "a TEB update waits for the thread to run"
    frozen = f", FreezeCount {members.freeze_count}" if members.freeze_count else ""
    if is_suspended_in_place(members):
        state = members.wait_state or 0
        name = windows.SUSPEND_STATES.get(state, "")
        word = "frozen" if members.freeze_count and not members.suspend_count else "suspended"
        return f"{word} in place (WaitRegister.State {state}, {name}; SuspendCount {members.suspend_count}{frozen})"
    if members.termination_request:
        return "the thread is to end when it next runs (TerminationApcRequest 1)"
    if members.suspend_count or members.freeze_count:
        counts = f"SuspendCount {members.suspend_count}{frozen}"
        if blocked is not None:
            return f"a suspension waits until the thread can run kernel APCs ({blocked}; {counts})"
        return f"a suspension waits for the thread to run ({counts})"
    return "left by a suspension that has ended: resumed and not yet run (SuspendCount 0)"


def queued_kernel_apcs(thread: QueuedThread, facts: Facts) -> tuple[Apc, ...] | None:
    """Return the APCs on the current kernel list without the kernel's own KAPCs, None if unknown."""
    return not_own(thread.queue(QueueName.KERNEL), facts)
