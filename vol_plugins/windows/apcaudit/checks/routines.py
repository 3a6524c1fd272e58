"""The findings about code addresses: the routines of APCs and the start addresses of threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .. import windows
from ..findings import Finding, Severity
from ..model import Apc, Backing, Code, Facts, Thread
from .embedded import is_special_user

_UNBACKED = (Backing.NOTHING, Backing.UNLOADED)


def routine_unbacked(apc: Apc, thread: Thread, facts: Facts) -> Finding | None:
    """A routine that the kernel will call lies in no loaded module."""
    return _routines_in(apc, facts, _UNBACKED, "routine-unbacked", Severity.HIGH)


def routine_unloaded(apc: Apc, thread: Thread, facts: Facts) -> Finding | None:
    """A routine that the kernel will call lies in the former range of a driver that has been unloaded."""
    return _routines_in(apc, facts, (Backing.UNLOADED,), "routine-unloaded", Severity.CRITICAL)


def routine_user_address(apc: Apc, thread: Thread, facts: Facts) -> Finding | None:
    """A routine that the kernel will call is a user-space or a non-canonical address."""
    return _routines_in(apc, facts, (Backing.USER,), "routine-user-address", Severity.CRITICAL)


def routine_not_code(apc: Apc, thread: Thread, facts: Facts) -> Finding | None:
    """A routine that the kernel will call lies in a module where no function begins."""
    return _not_code_finding(list(_kernel_routines(apc, facts)))


def routine_conflict(apc: Apc, thread: Thread, facts: Facts) -> Finding | None:
    """A routine that the kernel will call lies where only a contradicted entry of the module list claims the memory."""
    routines = _kernel_routines(apc, facts)
    doubted = [(name, routine, routine.doubt) for name, routine in routines if routine.doubt is not None]
    if not doubted:
        return None
    where = " and ".join(f"{name} {routine.address:#x}" for name, routine, _ in doubted)
    reasons = "; ".join(dict.fromkeys(doubt.text for _, _, doubt in doubted))
    return Finding(
        "module-conflict",
        Severity.HIGH if any(doubt.overlapping for _, _, doubt in doubted) else Severity.MEDIUM,
        f"{where} {'lies' if len(doubted) == 1 else 'lie'} where the list of modules contradicts itself: {reasons}",
    )


def orphan_start(thread: Thread, facts: Facts) -> Finding | None:
    """A live system thread starts in no loaded module."""
    start = thread.members.start_address
    # Some system threads have no start address: 0.
    if not start or thread.members.state in (None, windows.TERMINATED):
        return None
    if thread.start_backing not in (Backing.NOTHING, Backing.UNLOADED, Backing.USER):
        return None
    where = Backing.NOTHING if thread.start_backing is Backing.UNLOADED else thread.start_backing
    text = f"the system thread's start address {start:#x} lies in {where.value}"
    if thread.start is not None and thread.start.region is not None:
        text += f" ({thread.start.region})"
    if thread.start is not None and thread.start.module is not None:
        text += f", but in an image that the list does not have: {thread.start}"
    return Finding("orphan-start", Severity.HIGH, text)


def start_not_code(thread: Thread, facts: Facts) -> Finding | None:
    """A live system thread starts at an address in a module at which no function can begin."""
    if thread.members.state in (None, windows.TERMINATED) or thread.start is None or thread.start.not_code is None:
        return None
    return _not_code_finding([("the system thread's start address", thread.start)])


def start_conflict(thread: Thread, facts: Facts) -> Finding | None:
    """A system thread starts where only a contradicted entry of the module list claims the address."""
    if thread.start_conflict is None or thread.members.start_address is None:
        return None
    if thread.members.state in (None, windows.TERMINATED):
        return None
    return Finding(
        "module-conflict",
        Severity.HIGH if thread.start_conflict.overlapping else Severity.MEDIUM,
        f"the system thread's start address {thread.members.start_address:#x} lies where the list of modules"
        f" contradicts itself: {thread.start_conflict}",
    )


def unloaded_start(thread: Thread, facts: Facts) -> Finding | None:
    """A system thread starts in the former range of a driver that has been unloaded."""
    if thread.start_backing is not Backing.UNLOADED or thread.start is None:
        return None
    if thread.members.state in (None, windows.TERMINATED):
        return None
    return Finding(
        "unloaded-start",
        Severity.HIGH,
        f"the system thread's start address {thread.start.address:#x} lies in the former range of"
        f" {thread.start.former}, which has been unloaded",
    )


def _kernel_routines(apc: Apc, facts: Facts) -> Iterator[tuple[str, Code]]:
    """Yield (name of the _KAPC member, code) for each routine of an APC that runs in kernel mode.

    The NormalRoutine of a special user APC is not one of them while its ApcMode is KernelMode: its KernelRoutine clears
    it before anything calls it.
    """
    if apc.kernel_routine is not None:
        yield "KernelRoutine", apc.kernel_routine
    if apc.rundown_routine is not None and apc.rundown_routine.address:
        yield "RundownRoutine", apc.rundown_routine
    normal = apc.normal_routine
    if (
        apc.apc_mode == windows.KERNEL_MODE
        and normal is not None
        and normal.address
        and not is_special_user(apc, facts)
    ):
        yield "NormalRoutine", normal


def _routines_in(
    apc: Apc, facts: Facts, backings: tuple[Backing, ...], code: str, severity: Severity
) -> Finding | None:
    """Report the kernel-mode routines of an APC whose backing is in `backings`, None without any.

    `code` is the finding's code; the sentence names the first of `backings`.
    """
    routines = [(name, routine) for name, routine in _kernel_routines(apc, facts) if routine.backing in backings]
    if not routines:
        return None
    wrong = [
        f"{name} {routine.address:#x}" + (f" ({routine.region})" if routine.region is not None else "")
        for name, routine in routines
    ]
    where = backings[0].value
    if backings == (Backing.UNLOADED,):
        names = sorted({str(routine.former) for _, routine in routines})
        where = f"the former range of {' and '.join(names)}, which has been unloaded"
    return Finding(code, severity, f"{' and '.join(wrong)} {'lies' if len(wrong) == 1 else 'lie'} in {where}")


def _not_code_finding(routines: Sequence[tuple[str, Code]]) -> Finding | None:
    """Report routines at addresses in a module where no function can begin."""
    wrong = [(name, routine, routine.not_code) for name, routine in routines if routine.not_code is not None]
    if not wrong:
        return None
    return Finding(
        "routine-not-code",
        Severity.HIGH if any(reason.certain for _, _, reason in wrong) else Severity.MEDIUM,
        "; ".join(f"{name} {routine.address:#x} ({routine}) lies {reason.text}" for name, routine, reason in wrong),
    )
