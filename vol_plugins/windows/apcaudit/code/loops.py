"""Calls that a routine makes again and again: those on a path that leads back to them."""

from __future__ import annotations

from dataclasses import dataclass

from .program import Function, Program
from .routines import named


@dataclass(frozen=True, slots=True, order=True)
class Repeated:
    """A call in a loop: its address, that of the call it stands for (itself, or one further in), and what is called."""

    in_loop_at: int
    called_at: int
    name: str


def find_repeated(program: Program, wanted: frozenset[str]) -> tuple[Repeated, ...]:
    """Find wanted calls in loops, also of functions that make them further in; by address."""
    making = _making(program, wanted)
    found = set()
    for function in program.functions.values():
        for address, call in function.calls.items():
            name = named(call.names, wanted)
            made = (address, name) if name is not None else making.get(call.function or 0)
            if made is not None and made[1] is not None and _in_loop(function, address):
                found.add(Repeated(address, made[0], made[1]))
    return tuple(sorted(found))


def _making(program: Program, wanted: frozenset[str]) -> dict[int, tuple[int, str]]:
    """Return the functions that make a wanted call themselves or through others, with one such call of each."""
    making: dict[int, tuple[int, str]] = {}
    grown = True
    while grown:
        grown = False
        for function in program.functions.values():
            if function.start in making:
                continue
            for address, call in sorted(function.calls.items()):
                name = named(call.names, wanted)
                made = (address, name) if name is not None else making.get(call.function or 0)
                if made is not None:
                    making[function.start] = made
                    grown = True
                    break
    return making


def _in_loop(function: Function, address: int) -> bool:
    seen: set[int] = set()
    pending = list(function.following(address))
    while pending:
        each = pending.pop()
        if each == address:
            return True
        if each not in seen:
            seen.add(each)
            pending += function.following(each)
    return False
