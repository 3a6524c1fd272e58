"""Where a thread's APCs lie and which third APC state holds some: what needs the stack to be told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from ..apc_lists import ApcLists
from ..drivers.loaded import Drivers
from ..memory import Memory
from ..model import Apc, Backing, Code, Queue, QueueName, Thread
from ..processes import Processes
from ..symbols import KernelSymbols
from .nested_attach import NestedAttach
from .regions import Regions
from .stack_ranges import StackRanges


class Placement:
    """Completes a thread that has APCs or is attached; `stack_pointers` are of running threads, by _ETHREAD."""

    def __init__(
        self,
        memory: Memory,
        symbols: KernelSymbols,
        drivers: Drivers,
        lists: ApcLists,
        processes: Processes,
        threads: Callable[[], Iterable[Thread]],
        stack_pointers: Mapping[int, int],
    ) -> None:
        self._stack_pointers = stack_pointers
        self._drivers = drivers
        self._lists = lists
        self._processes = processes
        self._nested = NestedAttach(memory, symbols)
        self._stacks = StackRanges(memory, symbols, drivers, threads)
        self._regions = Regions(memory)

    def placed(self, thread: Thread) -> Thread:
        """Return the thread with its nested APC state, if any, and with every misplaced APC marked."""
        if thread.members.apc_state_index == 1 and not thread.idle:
            thread = self._with_nested(thread)
        queues = tuple(self._marked(queue, thread) for queue in thread.queues)
        return replace(thread, queues=queues) if queues != thread.queues else thread

    def _with_nested(self, thread: Thread) -> Thread:
        stack_pointer = self._stack_pointers.get(thread.address)
        found = self._nested.search(thread.members, self._processes.known, stack_pointer)
        if not found.states:
            return replace(
                thread,
                nested_attach={
                    None: "not examined, its kernel stack is not in the image",
                    False: "none found in the part of its kernel stack that is in the image",
                    True: "none on its kernel stack",
                }[found.whole],
            )
        queues: list[Queue] = []
        texts = []
        # Below the stack pointer lie leftovers of calls that have returned.
        doubt = "" if found.top_known else "?"
        for state in found.states:
            process = self._processes.at(state.process)
            texts.append(f"_KAPC_STATE at {state.address:#x} on its stack for {process}{doubt}")
            queues += self._lists.at(
                thread,
                ((QueueName.SAVED_KERNEL, state.kernel_head), (QueueName.SAVED_USER, state.user_head)),
                nested=True,
            )
        return replace(thread, queues=(*thread.queues, *queues), nested_attach="; ".join(texts))

    def _marked(self, queue: Queue, thread: Thread) -> Queue:
        apcs = tuple(self._place(apc, thread) for apc in queue.apcs)
        return replace(queue, apcs=apcs) if apcs != queue.apcs else queue

    def _place(self, apc: Apc, thread: Thread) -> Apc:
        apc = self._with_regions(apc, thread)
        if apc.address < self._drivers.kernel_start:
            return replace(apc, misplaced="user space")
        region = self._regions.at(apc.address)
        if region is not None:
            return replace(apc, misplaced=region)
        holder = self._stacks.holder(apc.address, thread)
        if holder is None:
            return apc
        return replace(apc, misplaced=_stack_of(holder, thread), on_stack=True)

    def _with_regions(self, apc: Apc, thread: Thread) -> Apc:
        """Name the regions of routines that no module holds."""
        kernel, rundown, normal = (
            code if code is None or code.backing not in _UNBACKED else self.with_region(code, thread)
            for code in (apc.kernel_routine, apc.rundown_routine, apc.normal_routine)
        )
        return replace(apc, kernel_routine=kernel, rundown_routine=rundown, normal_routine=normal)

    def with_region(self, code: Code, thread: Thread) -> Code:
        """Return code of no module with the name of the memory that it lies in, where that is known."""
        region = self._regions.at(code.address)
        if region is None:
            holder = self._stacks.holder(code.address, thread)
            if holder is not None:
                region = _stack_of(holder, thread)
            elif self._stacks.in_pool(code.address):
                region = "pool"
        return code if region is None else replace(code, region=region)


def _stack_of(holder: int, thread: Thread) -> str:
    return f"the kernel stack of {'its own thread' if holder == thread.address else f'thread {holder:#x}'}"


_UNBACKED = (Backing.NOTHING, Backing.UNLOADED)
