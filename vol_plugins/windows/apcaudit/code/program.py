"""A routine and what it calls within its driver: instructions, how they follow one another, and the calls by name."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from .instruction import Decode, Flow, Instruction

FUNCTIONS_BOUND = 128
INSTRUCTIONS_BOUND = 8192
"""How much of a driver is followed from one start address, all functions together."""

# The register through which a driver built for retpolines calls an import once the kernel has patched its code:
# mov r10, [slot]; call stub (Microsoft, "Mitigating Spectre variant 2 with Retpoline on Windows").
_RETPOLINE_REGISTER = "r10"


@dataclass(frozen=True, slots=True)
class Call:
    """What a call or tail jump leads to: names of a function of another module, or a function of the same driver."""

    names: frozenset[str] = frozenset()
    function: int | None = None


@dataclass(slots=True)
class Function:
    """A function of the driver: its instructions by address, and what its calls and tail jumps lead to."""

    start: int
    instructions: dict[int, Instruction] = field(default_factory=dict)
    calls: dict[int, Call] = field(default_factory=dict)

    def following(self, address: int) -> tuple[int, ...]:
        """Return the instructions of the function that may run behind one of its own."""
        instruction = self.instructions[address]
        after: list[int] = []
        if instruction.flow in (Flow.NEXT, Flow.CALL, Flow.BRANCH):
            after.append(instruction.end)
        if (
            instruction.flow in (Flow.JUMP, Flow.BRANCH)
            and address not in self.calls
            and instruction.target is not None
        ):
            after.append(instruction.target)
        return tuple(each for each in after if each in self.instructions)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a program is read through.

    `inside` tells whether an address lies in the driver, `read_slot` reads a pointer, `names_of` names the function of
    another module that starts at an address.
    """

    decode: Decode
    inside: Callable[[int], bool]
    read_slot: Callable[[int], int | None]
    names_of: Callable[[int], frozenset[str]]


@dataclass(frozen=True, slots=True)
class Program:
    """The functions reached from a start address, and what kept the rest from being followed."""

    start: int
    functions: dict[int, Function]
    notes: tuple[str, ...]


def read_program(start: int, surroundings: Surroundings) -> Program:
    """Follow the code from a start address."""
    reader = _Reader(surroundings)
    return reader.read(start)


class _Reader:
    def __init__(self, surroundings: Surroundings) -> None:
        self._around = surroundings
        self._left = INSTRUCTIONS_BOUND
        self._unreadable: int | None = None
        self._cut = False

    def read(self, start: int) -> Program:
        functions: dict[int, Function] = {}
        pending = deque([start])
        while pending:
            address = pending.popleft()
            if address in functions:
                continue
            if len(functions) == FUNCTIONS_BOUND or self._left <= 0:
                self._cut = True
                break
            function = functions[address] = self._function(address)
            pending += [call.function for call in function.calls.values() if call.function is not None]
        notes = []
        if self._unreadable is not None:
            notes.append(f"code from {self._unreadable:#x} on cannot be read")
        if self._cut:
            notes.append("there is more code than is followed")
        return Program(start, functions, tuple(notes))

    def _function(self, start: int) -> Function:
        function = Function(start)
        pending = [start]
        while pending:
            address = pending.pop()
            while address not in function.instructions:
                self._left -= 1
                instruction = self._around.decode(address) if self._around.inside(address) else None
                if instruction is None or self._left < 0:
                    self._cut = self._cut or self._left < 0
                    if instruction is None and self._unreadable is None:
                        self._unreadable = address
                    break
                function.instructions[address] = instruction
                target = instruction.target if instruction.flow in (Flow.JUMP, Flow.BRANCH) else None
                if target is not None and self._around.inside(target):
                    pending.append(target)
                if instruction.flow not in (Flow.NEXT, Flow.CALL, Flow.BRANCH):
                    break
                address = instruction.end
        self._name_calls(function)
        return function

    def _name_calls(self, function: Function) -> None:
        loaded: dict[str, set[int]] = {}
        for instruction in function.instructions.values():
            if instruction.loads is not None:
                loaded.setdefault(instruction.loads[0], set()).add(instruction.loads[1])
        ends = {each.end: each for each in function.instructions.values() if each.loads is not None}
        for address, instruction in function.instructions.items():
            if instruction.flow not in (Flow.CALL, Flow.JUMP):
                continue
            slot = instruction.slot
            before = ends.get(address)
            if before is not None and before.loads is not None and before.loads[0] == _RETPOLINE_REGISTER:
                slot = before.loads[1]
            if instruction.register is not None:
                # A register that the whole function fills from one slot only.
                slots = loaded.get(instruction.register, set())
                slot = next(iter(slots)) if len(slots) == 1 else None
            call = self._through(slot) if slot is not None else self._direct(instruction)
            if call is not None:
                function.calls[address] = call

    def _through(self, slot: int) -> Call | None:
        value = self._around.read_slot(slot)
        if value is None:
            return None
        return Call(function=value) if self._around.inside(value) else Call(self._around.names_of(value))

    def _direct(self, instruction: Instruction) -> Call | None:
        target = instruction.target
        if target is None:
            return None
        if not self._around.inside(target):
            return Call(self._around.names_of(target))
        if instruction.flow is Flow.JUMP:
            return None
        thunk = self._around.decode(target)
        if thunk is not None and thunk.flow is Flow.JUMP and thunk.slot is not None:
            return self._through(thunk.slot)
        return Call(function=target)
