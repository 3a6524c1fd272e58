"""The findings about the code at a thread's start address, one small pure function each."""

from __future__ import annotations

from collections.abc import Callable

from ..model import Finding
from ..severity import Severity
from .held import Crossing, find_crossings
from .loops import find_repeated
from .program import Program
from .routines import ACQUIRE_MUTEX, DISABLE_APCS, ENABLE_APCS, RELEASE_MUTEX, SEND, WAIT

CodeCheck = Callable[[Program], "Finding | None"]

_SHOWN = 3  # how many places an explanation names


def flt_send_loop(program: Program) -> Finding | None:
    """A system thread sends messages through the filter manager in a loop, each of which it waits for."""
    repeated = find_repeated(program, SEND)
    if not repeated:
        return None
    places = []
    for each in repeated[:_SHOWN]:
        inner = f", made by the call at {each.in_loop_at:#x}" if each.in_loop_at != each.called_at else ""
        places.append(f"{each.called_at:#x}{inner}")
    return Finding(
        "flt-send-loop",
        Severity.LOW,
        f"the thread's start routine calls {repeated[0].name} in a loop (call at {_listed(places, len(repeated))}):"
        " each call waits for a process and attaches to it",
    )


def flt_send_under_fast_mutex(program: Program) -> Finding | None:
    """A message is sent through the filter manager with a fast or guarded mutex held, so with APCs disabled."""
    crossings = find_crossings(program, ACQUIRE_MUTEX, RELEASE_MUTEX, SEND)
    if not crossings:
        return None
    return Finding(
        "flt-send-under-fast-mutex",
        Severity.MEDIUM,
        f"on a path of the thread's start routine {crossings[0].crossed} is called with a mutex held"
        f" ({_crossings(crossings)}): APCs are disabled then, so that one that is queued while the call is attached to"
        " the receiving process stays queued, and detaching stops the machine with bugcheck 0x6",
    )


def apc_disabled_across_wait(program: Program) -> Finding | None:
    """The start routine waits in a critical or guarded region, in which kernel APCs stay queued."""
    crossings = find_crossings(program, DISABLE_APCS, ENABLE_APCS, WAIT)
    if not crossings:
        return None
    return Finding(
        "apc-disabled-across-wait",
        Severity.LOW,
        f"on a path of the thread's start routine {crossings[0].crossed} is called with APCs disabled"
        f" ({_crossings(crossings)}): what is queued during the wait stays queued",
    )


CHECKS: tuple[CodeCheck, ...] = (flt_send_loop, flt_send_under_fast_mutex, apc_disabled_across_wait)


def check(program: Program) -> tuple[Finding, ...]:
    """Run every check of the code."""
    return tuple(finding for each in CHECKS if (finding := each(program)) is not None)


def _crossings(crossings: tuple[Crossing, ...]) -> str:
    places = [
        f"{each.acquired} at {each.acquired_at:#x}, {each.crossed} at {each.crossed_at:#x}"
        for each in crossings[:_SHOWN]
    ]
    return _listed(places, len(crossings), "; ")


def _listed(places: list[str], count: int, separator: str = ", ") -> str:
    more = f"{separator}{count - len(places)} more" if count > len(places) else ""
    return separator.join(places) + more
