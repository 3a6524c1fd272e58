"""A start routine and what it calls in its driver, followed on all paths: what comes after what, and what is called."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from .instruction import RETPOLINE, Fixed, Flow, Instruction, Slot

FUNCTIONS_BOUND = 128
INSTRUCTIONS_BOUND = 8192
MUTEXES_BOUND = 16
"""How much is followed from one start address."""

MUTEX = "mutex"
"""Stands for a mutex whose address is not known."""

TRIES = r"Exi?TryToAcquireFastMutex|KeTryToAcquireGuardedMutex"
"""Routines that acquire a mutex if they return TRUE (WDK; the kernel exports ExiX for the hal's ExX)."""
_NO_RETURN = r"KeBugCheck(Ex)?|PsTerminateSystemThread|ExRaiseStatus"
_CALLS_ANY = r"_?guard_(xfg_)?dispatch_icall\w*"  # what its caller has in rax (control flow guard)

# Registers that a function may change (x64 ABI; x86 has the first three and the flags), its result, and its first
# argument: the mutex, in all routines that acquire or release one (fastcall on x86).
_VOLATILE = frozenset({"ax", "cx", "dx", "r8", "r9", "r10", "r11", "flags"})
_RESULT, _ARGUMENT = "ax", "cx"


@dataclass(frozen=True, slots=True)
class DriverCode:
    """How a driver's code is read.

    Attributes:
        addresses: the driver's.
        decode: gives the instruction at an address, None where there is none or it cannot be read.
        read_slot: reads a pointer.
        names_of: names the function of another module that starts at an address, as `module!function`.
    """

    addresses: range
    decode: Callable[[int], Instruction | None]
    read_slot: Callable[[int], int | None]
    names_of: Callable[[int], frozenset[str]]


@dataclass(frozen=True, slots=True)
class Call:
    """A call or tail jump: of another module's function, by its names, or of the driver's `function`; else unknown."""

    names: frozenset[str] = frozenset()
    function: int | None = None
    mutex: int | str = MUTEX

    def among(self, wanted: str) -> str | None:
        """Return the name, `module!function`, if a regular expression describes the function."""
        return min((each for each in self.names if re.fullmatch(wanted, each.rpartition("!")[2])), default=None)


@dataclass(slots=True)
class Program:
    """The code that was followed, by the addresses of its instructions.

    Attributes:
        functions: what belongs to each function, by the function's address.
        following: what may come next within the function.
        calls: what calls and tail jumps lead to.
        tried: of a branch that depends on the result of one of TRIES, the way to go if it is TRUE, and the call.
        returns: where functions return to their callers.
        lost: from where on code was not followed, since it cannot be read or a jump is computed.
        notes: what else was not followed.
    """

    functions: dict[int, set[int]] = field(default_factory=dict)
    following: dict[int, tuple[int, ...]] = field(default_factory=dict)
    calls: dict[int, Call] = field(default_factory=dict)
    tried: dict[int, tuple[int, int]] = field(default_factory=dict)
    returns: set[int] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)
    notes: dict[str, None] = field(default_factory=dict)

    def behind(self, address: int) -> set[int]:
        """Return what may come after an instruction in its function, itself if it is in a loop."""
        found: set[int] = set()
        pending = [address]
        while pending:
            after = set(self.following.get(pending.pop(), ())) - found
            found |= after
            pending += after
        return found

    def is_within(self, count: int, bound: int, what: str) -> bool:
        """Tell whether a bound is kept; if not, note it."""
        if count > bound:
            self.notes[f"no more than {bound} {what} are followed"] = None
        return count <= bound


@dataclass(frozen=True, slots=True)
class _Result:
    """What the call at an address returned."""

    address: int


_Registers = Mapping[str, Fixed | Slot | _Result]


class Reader:
    """Follows the code. Where paths meet, what registers hold on all of them is kept, and passed on anew."""

    def __init__(self, code: DriverCode) -> None:
        self._code = code
        self._instructions: dict[int, Instruction | None] = {}
        self._registers: dict[int, _Registers] = {}
        self._entered: set[int] = set()
        self._by_register: set[int] = set()
        self._mutexes: set[int] = set()
        self._pending: list[int] = []
        self._program = Program()

    def read(self, start: int) -> Program:
        """Follow the code from a start address."""
        program = self._program
        self._entered.add(start)
        self._go(start, {})
        while self._pending:
            self._pass_over(self._pending.pop())
        calls, pending = program.calls, [start]
        for function in pending:
            if function not in program.functions:
                inside = program.functions[function] = {function} | program.behind(function)
                for address in sorted(inside & calls.keys()):
                    # What was not followed may load a register with something else and lead back.
                    if inside & program.lost and address in self._by_register:
                        calls[address] = Call()
                    called = calls[address].function
                    pending += [] if called is None else [called]
        # Without those on paths that a register seemed to open until it was known to hold something else as well.
        program.calls = {at: calls[at] for inside in program.functions.values() for at in inside & calls.keys()}
        return program

    def _pass_over(self, address: int) -> None:
        program, registers, instruction = self._program, self._registers[address], self._decode(address)
        program.following[address] = ()
        program.calls.pop(address, None)
        program.tried.pop(address, None)
        if instruction is None:
            program.lost.add(address)
            return
        if isinstance(instruction.target, str):
            self._by_register.add(address)
        flow, target = instruction.flow, self._target(instruction, registers)
        after = _behind(instruction, registers)
        ways = [instruction.end] if flow in (Flow.NEXT, Flow.CALL, Flow.BRANCH) else []
        leaves = flow is Flow.JUMP and target is not None and target not in self._code.addresses
        if flow is Flow.CALL or leaves:
            call = program.calls[address] = self._call(target, registers)
            after |= {_RESULT: _Result(address)} if call.among(TRIES) else {}
            if call.among(_NO_RETURN):
                ways, leaves = [], False
        elif target is not None:
            ways.append(target)
        elif flow is Flow.JUMP:
            program.lost.add(address)
        if leaves or flow is Flow.RETURN:
            program.returns.add(address)
        tested = registers.get("flags")
        if isinstance(tested, _Result) and instruction.nonzero is not None and len(set(ways)) > 1:
            program.tried[address] = instruction.nonzero, tested.address
        program.following[address] = tuple(ways)
        for way in ways:
            self._go(way, after)

    def _go(self, address: int, registers: _Registers) -> None:
        before = self._registers.get(address)
        now = registers if before is None else dict(before.items() & registers.items())
        if now != before:
            self._registers[address] = now
            self._pending.append(address)

    def _target(self, instruction: Instruction, registers: _Registers) -> int | None:
        """Return what a call or jump leads to, by a thunk or stub too."""
        target = registers.get(instruction.target) if isinstance(instruction.target, str) else instruction.target
        if isinstance(target, Fixed) and instruction.flow is not Flow.BRANCH:
            stub = registers.get(RETPOLINE)
            thunk = self._decode(target.address) if instruction.flow is Flow.CALL else None
            if isinstance(stub, Slot) and self._names(self._code.read_slot(stub.address)):
                target = stub
            elif thunk is not None and thunk.flow is Flow.JUMP and isinstance(thunk.target, Slot):
                target = thunk.target
        if isinstance(target, Slot):
            return self._code.read_slot(target.address)
        return target.address if isinstance(target, Fixed) else None

    def _names(self, address: int | None) -> frozenset[str]:
        return frozenset() if address is None or address in self._code.addresses else self._code.names_of(address)

    def _call(self, target: int | None, registers: _Registers) -> Call:
        if target is not None and target in self._code.addresses:
            if not self._program.is_within(len(self._entered | {target}), FUNCTIONS_BOUND, "functions"):
                return Call()
            self._entered.add(target)
            self._go(target, {})
            return Call(function=target)
        call, argument = Call(self._names(target)), registers.get(_ARGUMENT)
        if call.among(_CALLS_ANY):
            return Call()
        if not call.among(r"\w*Mutex\w*") or not isinstance(argument, Fixed):
            return call
        if not self._program.is_within(len(self._mutexes | {argument.address}), MUTEXES_BOUND, "mutexes"):
            return call
        self._mutexes.add(argument.address)
        return replace(call, mutex=argument.address)

    def _decode(self, address: int) -> Instruction | None:
        known, program = self._instructions, self._program
        if address not in known and address in self._code.addresses:
            if not program.is_within(len(known) + 1, INSTRUCTIONS_BOUND, "instructions"):
                return None
            known[address] = self._code.decode(address)
            if known[address] is None:
                program.notes[f"code at {address:#x} cannot be read"] = None
        return known.get(address)


def _behind(instruction: Instruction, registers: _Registers) -> dict[str, Fixed | Slot | _Result]:
    """Return what is known of the registers once an instruction has run."""
    if instruction.flow is Flow.CALL:
        # What was tried may be released in the call.
        return {
            name: value for name, value in registers.items() if name not in _VOLATILE and not isinstance(value, _Result)
        }
    after = {name: value for name, value in registers.items() if name not in instruction.writes}
    if instruction.sets is not None:
        name, source = instruction.sets
        value = registers.get(source) if isinstance(source, str) else source
        after |= {} if value is None else {name: value}
    return after
