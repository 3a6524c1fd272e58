"""The routines that the kernel would call: where they lie, and that code can begin there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .. import facts as windows
from ..model import Apc, Backing, Code, Facts, Finding, Severity
from .embedded import is_special_user

UNBACKED = (Backing.NOTHING, Backing.UNLOADED)


def kernel_routines(apc: Apc, facts: Facts) -> Iterator[tuple[str, Code]]:
    """Yield the routines of an APC that run in kernel mode, by the names of their members.

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


def routines_in(apc: Apc, facts: Facts, backings: tuple[Backing, ...], code: str, severity: Severity) -> Finding | None:
    """Report the routines of an APC, of those that run in kernel mode, that a kind of memory holds."""
    routines = [(name, routine) for name, routine in kernel_routines(apc, facts) if routine.backing in backings]
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


def not_code_finding(routines: Sequence[tuple[str, Code]]) -> Finding | None:
    """Report routines that lie in a module where no function can begin."""
    wrong = [(name, routine, routine.not_code) for name, routine in routines if routine.not_code is not None]
    if not wrong:
        return None
    return Finding(
        "routine-not-code",
        Severity.HIGH if any(reason.certain for _, _, reason in wrong) else Severity.MEDIUM,
        "; ".join(f"{name} {routine.address:#x} ({routine}) lies {reason.text}" for name, routine, reason in wrong),
    )
