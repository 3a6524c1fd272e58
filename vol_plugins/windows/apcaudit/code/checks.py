"""The findings about the code at a thread's start address: calls in loops, and calls while something is held."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from ..model import Finding
from ..severity import Severity
from .program import MUTEX, TRIES, Call, Program

# Regular expressions of routines' names (WDK). Not in it: the kernel exports ExiX for the hal's ExX and, since Vista,
# routines for a region together with a fast mutex and for a priority region, which is a critical one.
_CRITICAL, _GUARDED = "critical region", "guarded region"
_ACQUIRES = {
    MUTEX: r"(Exi?AcquireFast|KeAcquireGuarded|ExEnterCriticalRegionAndAcquireFast)Mutex(Unsafe)?",
    _CRITICAL: r"KeEnterCriticalRegion|ExEnter(Critical|Priority)RegionAndAcquire\w+",
    _GUARDED: r"KeEnterGuardedRegion",
}
_RELEASES = {
    MUTEX: r"(Exi?ReleaseFast|KeReleaseGuarded)Mutex(Unsafe)?|ExReleaseFastMutexUnsafeAndLeaveCriticalRegion",
    _CRITICAL: r"KeLeaveCriticalRegion|ExRelease\w+AndLeave(Critical|Priority)Region",
    _GUARDED: r"KeLeaveGuardedRegion",
}
_SEND = r"FltSendMessage"
_WAIT = r"KeWaitFor(SingleObject|MutexObject|MultipleObjects)|KeDelayExecutionThread|FltSendMessage"

PLACES_BOUND = 64
"""How many calls are looked at whether they are in a loop."""

_SHOWN = 3  # how many places an explanation gives
_NESTED_BOUND = 16  # how deep regions are counted

_NOTHING = (0, 0)  # how often something is held at least, and the address of the call that acquired it first


def check(program: Program) -> tuple[Finding, ...]:
    """Run every check of the code."""
    sends, waits = _places(program, _SEND), _places(program, _WAIT)
    mutexes = {call.mutex for call in program.calls.values() if call.among(f"{_ACQUIRES[MUTEX]}|{TRIES}")}
    found = (
        _finding(
            "flt-send-loop",
            Severity.LOW,
            _in_loops(program, sends),
            "the thread's start routine calls FltSendMessage in a loop ({}): each call waits for a process and"
            " attaches to it",
        ),
        _finding(
            "flt-send-under-fast-mutex",
            Severity.MEDIUM,
            [place for each in sorted(mutexes, key=str) for place in _holding(program, each, sends)],
            "the thread's start routine calls FltSendMessage with a mutex held on every path to the call ({}): APCs"
            " are disabled then, so that one that is queued while the call is attached to the receiving process stays"
            " queued, and detaching stops the machine with bugcheck 0x6",
        ),
        _finding(
            "apc-disabled-across-wait",
            Severity.LOW,
            [*_holding(program, _CRITICAL, waits), *_holding(program, _GUARDED, waits)],
            "the thread's start routine waits with APCs disabled on every path to the call ({}): what is queued during"
            " the wait stays queued",
        ),
    )
    return tuple(finding for finding in found if finding is not None)


def _finding(code: str, severity: Severity, places: list[str], text: str) -> Finding | None:
    shown = "; ".join([*places[:_SHOWN], *(["and more"] if len(places) > _SHOWN else [])])
    return Finding(code, severity, text.format(shown)) if places else None


def _places(program: Program, wanted: str) -> dict[int, str]:
    """Return the calls of wanted routines, and of functions that make such a call, with what to say of them."""
    own = {at: f"{name} at {at:#x}" for at, call in program.calls.items() if (name := call.among(wanted)) is not None}
    inner = _with_any(program, own)
    return own | {
        at: f"{own[inner[call.function]]}, made by the call at {at:#x}"
        for at, call in program.calls.items()
        if call.function in inner
    }


def _with_any(program: Program, addresses: Iterable[int]) -> dict[int | None, int]:
    """Return the functions that have such an instruction, or call one that has, each with the instruction."""
    wanted = set(addresses)
    found: dict[int | None, int] = {}
    callers: dict[int | None, list[int]] = defaultdict(list)
    for function, inside in program.functions.items():
        if own := inside & wanted:
            found[function] = min(own)
        for at in inside & program.calls.keys():
            callers[program.calls[at].function].append(function)
    pending = list(found)
    for called in pending:
        for caller in callers[called]:
            if caller not in found:
                found[caller] = found[called]
                pending.append(caller)
    return found


def _in_loops(program: Program, places: Mapping[int, str]) -> list[str]:
    program.is_within(len(places), PLACES_BOUND, "calls that send messages")
    return [places[at] for at in sorted(places)[:PLACES_BOUND] if at in program.behind(at)]


def _holding(program: Program, what: int | str, places: Mapping[int, str]) -> list[str]:
    """Return those places where a mutex or region is held on every path; at the start of a function nothing is."""
    calls = program.calls
    changes = {at: _change(call, what) for at, call in calls.items()}
    # What was not followed may release anything and lead back.
    lost = {at for inside in program.functions.values() if inside & program.lost for at in inside}
    unknown = _with_any(program, lost.union(at for at, change in changes.items() if change is None))
    changes |= {at: None for at, call in calls.items() if call.function in unknown}
    # What a function leaves held shows where it returns; one that changes nothing leaves all as it was.
    changing = _with_any(program, (at for at, change in changes.items() if change)).keys() - unknown.keys()
    back: dict[int, list[int]] = defaultdict(list)
    for at, call in calls.items():
        if call.function is not None and call.function in changing:
            for end in program.functions[call.function] & program.returns:
                back[end] += program.following[at]
    held = dict.fromkeys([*program.functions, *lost], _NOTHING)
    pending = list(held)
    while pending:
        at = pending.pop()
        entered = at in calls and calls[at].function in changing
        after = _changed(held[at], changes.get(at, 0), at, nests=what in (_CRITICAL, _GUARDED))
        way, tried = program.tried.get(at, _NOTHING)
        for each in [*back[at], *(() if entered else program.following[at])]:
            now = (1, tried) if each == way and calls[tried].mutex == what else after
            if each not in held or now < held[each]:
                held[each] = now
                pending.append(each)
    proven = (at for at in sorted(places) if held.get(at, _NOTHING) > _NOTHING)
    names = f"{_ACQUIRES[what if isinstance(what, str) else MUTEX]}|{TRIES}"
    return [
        f"{calls[held[at][1]].among(names)} at {held[at][1]:#x}, {places[at]}"
        for at in proven
        if calls[at].function not in changing | unknown.keys()
    ]


def _change(call: Call, what: int | str) -> int | None:
    """Return how a call changes how often something is held, None if that is not known."""
    kind = what if isinstance(what, str) else MUTEX
    # A mutex whose address is not known may be any.
    if call.among(_RELEASES[kind]) and (what == kind or call.mutex in (what, MUTEX)):
        return -1
    if call.among(_ACQUIRES[kind]) and (kind != MUTEX or call.mutex == what):
        return 1
    return 0 if call.names or call.function is not None else None


def _changed(held: tuple[int, int], change: int | None, at: int, *, nests: bool) -> tuple[int, int]:
    times, first = held
    if change is None:
        return _NOTHING
    times = min(times + change, _NESTED_BOUND if nests else 1)
    return (times, first or at) if times > 0 else _NOTHING
