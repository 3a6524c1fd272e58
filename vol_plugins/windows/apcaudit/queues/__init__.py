"""The stage that walks a thread's APC lists, and searches the stack of an attached one for a third APC state."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from struct import unpack_from

from .. import windows
from ..kernel import Kernel
from ..members import PrefilterMembers, ThreadMembers
from ..model import Backing, FoundThread, Process, Queue, QueuedThread, QueueName
from ..threads.kernel_stacks import StackSegments
from .apc_lists import ApcLists
from .crash import Crash
from .off_list import OffList
from .placement import PlacementFinder

STACK_BOUND = 96 << 10
"""How many bytes of a stack are searched, from its base down; on x64 a stack has 24 KiB, a large one 72 KiB."""


@dataclass(frozen=True, slots=True)
class NestedState:
    """A _KAPC_STATE on a kernel stack: its virtual address, list heads, process, and whether both lists are empty."""

    address: int
    kernel_head: int
    user_head: int
    process: int
    empty: bool


@dataclass(frozen=True, slots=True)
class StackSearch:
    """The states found, and whether all of the stack that is in use could be read (None: no part of it).

    `top_known` is whether the stack pointer is known, which it is not for a running thread without a crash context.
    """

    states: tuple[NestedState, ...]
    whole: bool | None
    top_known: bool = True


@dataclass(frozen=True, slots=True)
class Nested:
    """The evidence of a second attach on a thread's stack, in words, and the lists of the states found."""

    text: str
    queues: tuple[Queue, ...] = ()


class NestedAttach:
    """Searches kernel stacks for third APC states, besides ApcState and SavedApcState.

    `stack_pointers` has the stack pointers that a crash saved, by _ETHREAD of the running thread.

    KiMoveApcState moves the lists with the state, so the heads of a genuine state point to themselves or to entries
    that point back. After several attaches, SavedApcState holds the state of the owner, ApcState that of the process
    attached to last, and the states of the attaches between them are on the stack.
    """

    def __init__(self, kernel: Kernel, lists: ApcLists, stack_pointers: Mapping[int, int]) -> None:
        self._lists = lists
        self._processes = kernel.processes
        self._stack_pointers = stack_pointers
        self._memory = kernel.memory
        self._pointer = kernel.memory.pointer_size
        layout = kernel.layout
        self._kernel, self._user = layout.state_kernel_head, layout.state_user_head
        self._process = layout.state_process
        self._segments = StackSegments(kernel)

    def find(self, thread: FoundThread) -> Nested:
        """Search the kernel stack of an attached thread for a third APC state, and walk its lists."""
        found = self.search(thread.members, self._processes.known, self._stack_pointers.get(thread.address))
        if not found.states:
            return Nested(_NONE[found.whole])
        queues: list[Queue] = []
        texts = []
        # Below the stack pointer lie leftovers of calls that have returned.
        doubt = "" if found.top_known else "?"
        for state in found.states:
            process = self._processes.read(state.process)
            texts.append(f"_KAPC_STATE at {state.address:#x} on its stack for {process}{doubt}")
            heads = ((QueueName.SAVED_KERNEL, state.kernel_head), (QueueName.SAVED_USER, state.user_head))
            queues += self._lists.read_at(thread, heads, nested=True)
        return Nested("; ".join(texts), tuple(queues))

    def search(
        self, members: ThreadMembers, processes: AbstractSet[int], stack_pointer: int | None = None
    ) -> StackSearch:
        """Search the stack of an attached thread.

        Args:
            members: the thread's.
            processes: virtual addresses of the known _EPROCESSes.
            stack_pointer: the running thread's, where a crash saved it.
        """
        # A running thread's KernelStack is its stack pointer at its last wait.
        top = stack_pointer if members.state == windows.RUNNING else members.kernel_stack
        searches = [self._segment(each.limit, each.base, top, processes) for each in self._segments.read(members)]
        states = tuple(state for search in searches for state in search.states)
        known = [search.whole for search in searches if search.whole is not None]
        return StackSearch(states, all(known) if known else None, top is not None)

    def _segment(self, limit: int, base: int, top: int | None, processes: AbstractSet[int]) -> StackSearch:
        start = max(limit, base - STACK_BOUND)
        data, holes = self._memory.read_sparse(start, base - start)
        unread = sum(end - begin for begin, end in holes)
        if unread == len(data):
            return StackSearch((), None)
        # A stack grows down from its base, so most of it may never have been written.
        unused = (len(data) - len(data.lstrip(b"\0"))) // self._pointer
        count = len(data) // self._pointer - unused
        words = unpack_from(f"<{count}{'I' if self._pointer == 4 else 'Q'}", data, unused * self._pointer)
        ahead = self._process // self._pointer
        states = [
            state
            for index, word in enumerate(words, unused)
            if word in processes and (state := self._state(start + (index - ahead) * self._pointer, word)) is not None
        ]
        used = top if top is not None and start <= top < base else start
        whole = not any(start + end > used for _, end in holes)
        return StackSearch(tuple(state for state in states if state.address >= used), whole)

    def _state(self, address: int, process: int) -> NestedState | None:
        """Return the _KAPC_STATE at an address if both of its lists are consistent."""
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


_NONE = {
    None: "not examined, its kernel stack is not in the image",
    False: "none found in the part of its kernel stack that is in the image",
    True: "none on its kernel stack",
}
"""The text where no state was found, by whether all of the stack could be read."""


STARTS_KEPT = 1 << 16
"""For how many different starts of threads the answer of is_fine is remembered."""

_FINE = (None, Backing.MODULE)


class Starts:
    """Finds what holds the start addresses of system threads, and whether anything is wrong with it."""

    def __init__(self, kernel: Kernel) -> None:
        self._drivers = kernel.drivers
        self._processes = kernel.processes
        self._fine: dict[tuple[int | None, int | None, int | None], bool] = {}

    def backing(self, members: PrefilterMembers | ThreadMembers) -> Backing | None:
        """Return what holds a system thread's start address, None for other threads."""
        start = members.start_address
        if start is None or not (members.system_thread or (start and self._processes.is_system(members.process))):
            return None
        return self._drivers.backing(start)

    def is_fine(self, members: PrefilterMembers | ThreadMembers) -> bool:
        """Tell whether nothing is wrong with a thread's start address."""
        # Many threads start at the same address.
        key = members.start_address, members.system_thread, members.process
        fine = self._fine.get(key)
        if fine is None:
            if len(self._fine) >= STARTS_KEPT:
                self._fine.clear()
            fine = self._fine[key] = self._is_fine(members)
        return fine

    def _is_fine(self, members: PrefilterMembers | ThreadMembers) -> bool:
        backing, start = self.backing(members), members.start_address
        if backing is None or start is None or backing not in _FINE:
            return backing in _FINE
        return self._drivers.conflict_at(start) is None and self._drivers.not_code(start) is None


class Queues:
    """Makes threads with walked lists of those that were found.

    `stack_pointers` has the stack pointers that a crash saved, by _ETHREAD of the running thread.
    """

    def __init__(
        self,
        kernel: Kernel,
        starts: Starts,
        lists: ApcLists,
        off_list: OffList,
        crash: Crash,
        placements: PlacementFinder,
        stack_pointers: Mapping[int, int],
    ) -> None:
        self._kernel = kernel
        self._drivers = kernel.drivers
        self._processes = kernel.processes
        self._starts = starts
        self._lists = lists
        self._off_list = off_list
        self._crash = crash
        self._placements = placements
        self._stack_pointers = stack_pointers

    @cached_property
    def _nested(self) -> NestedAttach:
        return NestedAttach(self._kernel, self._lists, self._stack_pointers)

    def is_empty(self, found: FoundThread) -> bool:
        """Tell whether nothing is queued to a thread, without reading more of the image."""
        return self._lists.are_empty(found.address, found.members) and not self._off_list.names(found.address)

    def read(self, found: FoundThread) -> QueuedThread:
        """Walk the lists of a thread, and add everything else that the checks need."""
        members = found.members
        backing, address = self._starts.backing(members), members.start_address
        start = conflict = None
        if address is not None and backing is not None:
            if backing not in _FINE or self._drivers.not_code(address) is not None:
                start = self._placements.add_region(self._drivers.routine(address), found)
            conflict = self._drivers.conflict_at(address)
        queues = () if self.is_empty(found) else self._lists.read(found)
        nested = self._nested.find(found) if members.apc_state_index == 1 and not found.idle else None
        if self._off_list.names(found.address):
            off_list = self._off_list.find(found, queues if nested is None else (*queues, *nested.queues))
            queues = queues if off_list is None else (*queues, off_list)
        queues = self._crash.add_bugcheck_apcs(found, queues)
        return QueuedThread.from_found(
            found,
            attached=self._attached(found),
            queues=queues if nested is None else (*queues, *nested.queues),
            start_backing=backing,
            start=start,
            start_conflict=conflict,
            nested_attach=None if nested is None else nested.text,
            lost=self._lists.find_lost(found),
        )

    def _attached(self, found: FoundThread) -> Process | None:
        """Return the process that a thread is attached to, None where it is in its own."""
        members = found.members
        owner = members.process if members.process is not None else found.owner and found.owner.address
        if not members.apc_process or members.apc_process == owner:
            return None
        return self._processes.read(members.apc_process)
