"""The APC state of a thread that attached twice: KeStackAttachProcess keeps it on the caller's kernel stack."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from struct import Struct

from .. import facts as windows
from ..layout import LayoutError
from ..memory import Memory
from ..model import ThreadMembers
from ..symbols import KernelSymbols

STACK_BOUND = 96 << 10
"""How many bytes of a stack are searched, from its base down; x64 gives threads 24 KiB, large ones 72."""


SEGMENTS_BOUND = 8
"""How many stacks of one thread are searched: each win32k callout may add one."""

# What lies at InitialStack, and where it names the base of the stack that it is on: since 8, Vista and 7 (public PDBs).
_CONTROLS = (("_KSTACK_CONTROL", "StackBase"), ("_KERNEL_STACK_CONTROL", "Current.StackBase"))


@dataclass(frozen=True, slots=True)
class NestedState:
    """A _KAPC_STATE on a kernel stack: its virtual address, its two list heads, and the process it is for."""

    address: int
    kernel_head: int
    user_head: int
    process: int
    empty: bool


@dataclass(frozen=True, slots=True)
class StackSearch:
    """The states found, and whether all of the stack that is in use could be read (None: not even in part).

    `top_known` is whether it is known from where up the stack is in use: it is not while the thread runs.
    """

    states: tuple[NestedState, ...]
    whole: bool | None
    top_known: bool = True


class NestedAttach:
    """Searches kernel stacks for third APC states.

    KiMoveApcState moves the lists with the state, so that the heads of a genuine one point to themselves or to
    entries that point back. SavedApcState holds the owner's state then and ApcState the last one attached to: only
    what lies between is on the stack.
    """

    def __init__(self, memory: Memory, symbols: KernelSymbols) -> None:
        self._memory = memory
        self._pointer = memory.pointer_size
        self._kernel = self._offset(symbols, "ApcListHead[0].Flink")
        self._user = self._offset(symbols, "ApcListHead[1].Flink")
        self._process = self._offset(symbols, "Process")
        self._control = _stack_control(symbols)

    def _offset(self, symbols: KernelSymbols, path: str) -> int:
        member = symbols.member("_KAPC_STATE", path)
        if member is None:
            raise LayoutError(f"the symbol table's _KAPC_STATE has no {path}")
        return member.offset

    def search(
        self, members: ThreadMembers, processes: AbstractSet[int], stack_pointer: int | None = None
    ) -> StackSearch:
        """Search the stack of an attached thread.

        Args:
            members: the thread's.
            processes: virtual addresses of the known _EPROCESSes.
            stack_pointer: that of a running thread, where a crash saved it.
        """
        # KernelStack of a running thread is where it last waited.
        top = stack_pointer if members.state == windows.RUNNING else members.kernel_stack
        searches = [self._segment(limit, base, top, processes) for limit, base in self._segments(members)]
        states = tuple(state for search in searches for state in search.states)
        known = [search.whole for search in searches if search.whole is not None]
        return StackSearch(states, all(known) if known else None, top is not None)

    def _segments(self, members: ThreadMembers) -> Iterator[tuple[int, int]]:
        """Yield (limit, base) of the stack in use and of those that it grew out of, as in callouts of win32k."""
        limit, base, initial = members.stack_limit, members.stack_base, members.initial_stack
        for _ in range(SEGMENTS_BOUND):
            if not base or not limit or not limit < base or base % self._pointer:
                return
            yield limit, base
            if not initial or self._control is None:
                return
            own, *before = (self._memory.pointer(initial + offset) for offset in self._control)
            # What lies there is such a structure only where it names the stack that it is on.
            if own != base:
                return
            base, limit, initial = before

    def _segment(self, limit: int, base: int, top: int | None, processes: AbstractSet[int]) -> StackSearch:
        start = max(limit, base - STACK_BOUND)
        data, holes = self._memory.read_sparse(start, base - start)
        unread = sum(end - begin for begin, end in holes)
        if unread == len(data):
            return StackSearch((), None)
        words = Struct("<" + ("I" if self._pointer == 4 else "Q") * (len(data) // self._pointer)).unpack_from(data)
        ahead = self._process // self._pointer
        states = [
            state
            for index, word in enumerate(words)
            if word in processes and (state := self._state(start + (index - ahead) * self._pointer, word)) is not None
        ]
        used = top if top is not None and start <= top < base else start
        whole = not any(start + end > used for _, end in holes)
        return StackSearch(tuple(state for state in states if state.address >= used), whole)

    def _state(self, address: int, process: int) -> NestedState | None:
        """Return the _KAPC_STATE at an address if both of its lists are consistent there."""
        heads = address + self._kernel, address + self._user
        empty = True
        for head in heads:
            links = self._memory.links(head)
            if links is None:
                return None
            following, before = (self._memory.links(link) for link in links)
            if following is None or before is None or following[1] != head or before[0] != head:
                return None
            empty = empty and links == (head, head)
        return NestedState(address, heads[0], heads[1], process, empty)


def _stack_control(symbols: KernelSymbols) -> tuple[int, ...] | None:
    """Return the offsets from InitialStack of this stack's base, and of base, limit and InitialStack of the one before.

    None where the symbols do not tell.
    """
    for structure, own in _CONTROLS:
        paths = (own, *(f"Previous.{name}" for name in ("StackBase", "StackLimit", "InitialStack")))
        members = [symbols.member(structure, path) for path in paths]
        if None not in members:
            return tuple(member.offset for member in members if member is not None)
    return None
