"""What a thread's kernel stack says of who called: the return addresses above a place on it."""

from __future__ import annotations

from dataclasses import dataclass

from ..drivers.loaded import Drivers
from ..memory import Memory
from ..model import Code, Thread
from ..stacks.calls import find_call

STACK_BOUND = 64 << 10
"""How many bytes of a stack are searched: x64 gives threads 24 KiB, large ones up to 72 (Windows Internals)."""

# Modules that every call passes through; the module that asked is the first one beyond them.
_COMMON = frozenset({"nt", "hal"})


@dataclass(frozen=True, slots=True)
class Caller:
    """A pointer into a driver on a stack: where it was found, and whether a call instruction precedes its target."""

    found_at: int
    code: Code
    follows_call: bool

    def __str__(self) -> str:
        return f"{'return address' if self.follows_call else 'pointer'} {self.code} at {self.found_at:#x}"


def on_stack(thread: Thread, address: int | None) -> bool | None:
    """Tell whether an address lies on the thread's kernel stack; None where its limits could not be read."""
    limit, base = thread.members.stack_limit, thread.members.stack_base
    if address is None or limit is None or base is None:
        return None
    return limit <= address < base


def caller_above(memory: Memory, drivers: Drivers, thread: Thread, address: int) -> Caller | None:
    """Find the nearest return address into a driver above a place on the thread's kernel stack.

    A pointer whose target follows a call instruction is preferred to one that may be anything. None is: nothing
    found in what could be read.
    """
    base = thread.members.stack_base
    size = memory.pointer_size
    if base is None or not on_stack(thread, address):
        return None
    start = -(-address // size) * size
    data, holes = memory.read_sparse(start, min(base - start, STACK_BOUND))
    # A page that is paged out ends the stack: what lies beyond it is not the nearest caller.
    end = holes[0][0] if holes else len(data)
    nearest: Caller | None = None
    for offset in range(0, end - size + 1, size):
        value = int.from_bytes(data[offset : offset + size], "little")
        driver = drivers.at(value)
        if driver is None or driver.label.lower() in _COMMON:
            continue
        if find_call(memory.read, value, size).follows:
            return Caller(start + offset, drivers.code(value), follows_call=True)
        if nearest is None:
            nearest = Caller(start + offset, drivers.code(value), follows_call=False)
    return nearest
