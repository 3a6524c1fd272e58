"""Findings about a thread's start routine: FltSendMessage in loops or under a mutex, waits with APCs disabled."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from ..findings import Finding, Severity
from ..kernel import Kernel
from ..model import Thread
from ..modules.driver import Driver
from ..windows import PAGE_SIZE
from .program import LONGEST, MUTEX, TRY_ACQUIRES, Call, DriverCode, Instruction, InstructionDecoder, Program, Reader

# Regular expressions of routines' names (WDK). Not documented there: the kernel exports ExiX for hal's ExX; since Vista
# it exports routines that combine a region with a fast mutex, and routines for priority regions, which are critical
# regions.
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
"""How many calls are checked for being in a loop."""

_SHOWN = 3  # how many places an explanation gives
_NESTED_BOUND = 16  # how many nested regions are counted

_NOTHING = (0, 0)  # the minimum number of times something is held, and the address of the call that first acquired it


def check(program: Program) -> tuple[Finding, ...]:
    """Return the findings about a start routine's code."""
    sends, waits = _places(program, _SEND), _places(program, _WAIT)
    mutexes = {
        call.mutex for call in program.calls.values() if call.name_matching(f"{_ACQUIRES[MUTEX]}|{TRY_ACQUIRES}")
    }
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
            [place for each in sorted(mutexes, key=str) for place in _places_held(program, each, sends)],
            "the thread's start routine calls FltSendMessage with a mutex held on every path to the call ({}): APCs"
            " are disabled then, so that one that is queued while the call is attached to the receiving process stays"
            " queued, and detaching stops the machine with bugcheck 0x6",
        ),
        _finding(
            "apc-disabled-across-wait",
            Severity.LOW,
            [*_places_held(program, _CRITICAL, waits), *_places_held(program, _GUARDED, waits)],
            "the thread's start routine waits with APCs disabled on every path to the call ({}): what is queued during"
            " the wait stays queued",
        ),
    )
    return tuple(finding for finding in found if finding is not None)


def _finding(code: str, severity: Severity, places: list[str], text: str) -> Finding | None:
    shown = "; ".join([*places[:_SHOWN], *(["and more"] if len(places) > _SHOWN else [])])
    return Finding(code, severity, text.format(shown)) if places else None


def _places(program: Program, wanted: str) -> dict[int, str]:
    """Return the calls of wanted routines, and of functions that call one, with a description of each."""
    own = {
        at: f"{name} at {at:#x}"
        for at, call in program.calls.items()
        if (name := call.name_matching(wanted)) is not None
    }
    inner = _functions_containing(program, own)
    return own | {
        at: f"{own[inner[call.function]]}, made by the call at {at:#x}"
        for at, call in program.calls.items()
        if call.function in inner
    }


def _functions_containing(program: Program, addresses: Iterable[int]) -> dict[int | None, int]:
    """Return the functions that contain one of the addresses, or call such a function, each with the address."""
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
    program.check_bound(len(places), PLACES_BOUND, "calls that send messages")
    return [places[at] for at in sorted(places)[:PLACES_BOUND] if at in program.reachable_from(at)]


def _places_held(program: Program, what: int | str, places: Mapping[int, str]) -> list[str]:
    """Describe the places where a mutex or region is held on every path; each function starts with nothing held."""
    calls = program.calls
    changes = {at: _change(call, what) for at, call in calls.items()}
    # Code that was not followed may release anything and jump back.
    lost = {at for inside in program.functions.values() if inside & program.unfollowed for at in inside}
    unknown = _functions_containing(program, lost.union(at for at, change in changes.items() if change is None))
    changes |= {at: None for at, call in calls.items() if call.function in unknown}
    # A called function's effect is the state at its returns; functions without any effect are skipped.
    changing = _functions_containing(program, (at for at, change in changes.items() if change)).keys() - unknown.keys()
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
        after = _held_after(held[at], changes.get(at, 0), at, nests=what in (_CRITICAL, _GUARDED))
        way, tried = program.try_branches.get(at, _NOTHING)
        for each in [*back[at], *(() if entered else program.following[at])]:
            now = (1, tried) if each == way and calls[tried].mutex == what else after
            if each not in held or now < held[each]:
                held[each] = now
                pending.append(each)
    proven = (at for at in sorted(places) if held.get(at, _NOTHING) > _NOTHING)
    names = f"{_ACQUIRES[what if isinstance(what, str) else MUTEX]}|{TRY_ACQUIRES}"
    return [
        f"{calls[held[at][1]].name_matching(names)} at {held[at][1]:#x}, {places[at]}"
        for at in proven
        if calls[at].function not in changing | unknown.keys()
    ]


def _change(call: Call, what: int | str) -> int | None:
    """Return how a call changes the number of times something is held: 1, -1, 0; None if unknown."""
    kind = what if isinstance(what, str) else MUTEX
    # A mutex whose address is unknown may be this one.
    if call.name_matching(_RELEASES[kind]) and (what == kind or call.mutex in (what, MUTEX)):
        return -1
    if call.name_matching(_ACQUIRES[kind]) and (kind != MUTEX or call.mutex == what):
        return 1
    return 0 if call.names or call.function is not None else None


def _held_after(held: tuple[int, int], change: int | None, at: int, *, nests: bool) -> tuple[int, int]:
    times, first = held
    if change is None:
        return _NOTHING
    times = min(times + change, _NESTED_BOUND if nests else 1)
    return (times, first or at) if times > 0 else _NOTHING


MISSING = (
    "the code at the start addresses of suspect threads is not checked: capstone is not installed"
    " (pip install capstone)"
)


class StartRoutines:
    """Checks the start routines of threads; results are cached by start address."""

    def __init__(self, kernel: Kernel) -> None:
        self._memory = kernel.memory
        self._drivers = kernel.drivers
        self._checked: dict[int, tuple[Finding, ...]] = {}
        self._notes: dict[str, None] = {}
        try:
            import capstone.x86

            self._decoder: InstructionDecoder | None = InstructionDecoder(capstone, kernel.memory.bits)
        except ImportError:
            self._decoder = None  # capstone is optional

    @property
    def notes(self) -> tuple[str, ...]:
        """What was not checked or not followed in the start routines so far."""
        return tuple(self._notes)

    def check(self, thread: Thread) -> tuple[Finding, ...]:
        """Return the findings about a system thread's start routine; none for other threads or starts in the kernel."""
        start = thread.members.start_address
        if thread.start_backing is None or not start or start < self._drivers.kernel_start:
            return ()
        driver = self._drivers.find(start)
        if driver is None or self._drivers.is_kernel(driver):
            return ()
        if self._decoder is None:
            self._notes[MISSING] = None
            return ()
        if start not in self._checked:
            program = Reader(self._code(driver)).read(start)
            self._checked[start] = check(program)
            name = self._drivers.code(start).text
            self._notes |= {f"the start routine {name} is checked in part: {note}": None for note in program.notes}
        return self._checked[start]

    def _code(self, driver: Driver) -> DriverCode:
        return DriverCode(
            range(driver.base, driver.base + driver.size),
            self._decode,
            self._memory.pointer,
            lambda address: frozenset(self._drivers.function_names(address)),
        )

    def _decode(self, address: int) -> Instruction | None:
        code = self._memory.read(address, LONGEST)
        if code is None:
            code = self._memory.read(address, min(LONGEST, PAGE_SIZE - address % PAGE_SIZE))
        assert self._decoder is not None
        return self._decoder.decode(address, code) if code else None
