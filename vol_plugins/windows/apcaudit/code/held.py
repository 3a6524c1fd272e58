"""What is held across what: calls that come between an acquiring and a releasing one on some path."""

from __future__ import annotations

from dataclasses import dataclass

from .instruction import Flow
from .program import Function, Program
from .routines import named

STEPS_BOUND = 200_000
"""How many instructions are passed through in one search, those that are passed more than once counted again."""

_DEPTH_BOUND = 64


@dataclass(frozen=True, slots=True, order=True)
class Crossing:
    """A call that is made while something is held: both calls' addresses and the names of what they call."""

    crossed_at: int
    acquired_at: int
    crossed: str
    acquired: str


def find_crossings(
    program: Program, acquire: frozenset[str], release: frozenset[str], crossed: frozenset[str]
) -> tuple[Crossing, ...]:
    """Find calls that may be made with something acquired and not yet released, by address."""
    search = _Search(program, acquire, release, crossed)
    if program.start in program.functions:
        search.through(program.start, frozenset(), 0)
    return tuple(sorted(search.crossings))


class _Search:
    def __init__(
        self, program: Program, acquire: frozenset[str], release: frozenset[str], crossed: frozenset[str]
    ) -> None:
        self._program = program
        self._acquire = acquire
        self._release = release
        self._crossed = crossed
        self._left = STEPS_BOUND
        self._leaves: dict[tuple[int, frozenset[int]], frozenset[int]] = {}
        self._names: dict[int, str] = {}
        self.crossings: set[Crossing] = set()

    def through(self, start: int, held: frozenset[int], depth: int) -> frozenset[int]:
        """Pass through a function; give what may be held when it returns, as addresses of acquiring calls."""
        key = start, held
        known = self._leaves.get(key)
        function = self._program.functions.get(start)
        if known is not None or function is None or depth > _DEPTH_BOUND:
            return held if known is None else known
        # What a function that calls itself leaves held is not known yet: the same as it was entered with.
        self._leaves[key] = held
        leaves: frozenset[int] = frozenset()
        states = {start: held}
        pending = [start]
        while pending and self._left > 0:
            self._left -= 1
            address = pending.pop()
            after = self._after(function, address, states[address], depth)
            instruction = function.instructions.get(address)
            if instruction is None:
                continue
            if instruction.flow is Flow.RETURN or (instruction.flow is Flow.JUMP and address in function.calls):
                leaves |= after
            for following in function.following(address):
                merged = states.get(following, frozenset()) | after
                if following not in states or merged != states[following]:
                    states[following] = merged
                    pending.append(following)
        self._leaves[key] = leaves
        return leaves

    def _after(self, function: Function, address: int, held: frozenset[int], depth: int) -> frozenset[int]:
        call = function.calls.get(address)
        if call is None:
            return held
        if call.function is not None:
            return self.through(call.function, held, depth + 1)
        crossed = named(call.names, self._crossed)
        if crossed is not None:
            self.crossings |= {Crossing(address, each, crossed, self._names[each]) for each in held}
        acquired = named(call.names, self._acquire)
        if acquired is not None:
            self._names[address] = acquired
            return held | {address}
        return frozenset() if named(call.names, self._release) is not None else held
