"""Where a thread's APCs lie and which third APC state holds some: what needs the stack to be told."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from ..apc_lists import ApcLists
from ..drivers.loaded import Drivers
from ..memory import Memory
from ..model import Apc, Queue, QueueName, Thread
from ..processes import Processes
from ..symbols import KernelSymbols
from .nested_attach import NestedAttach
from .stack_ranges import StackRanges


class Placement:
    """Completes a thread that has APCs or is attached."""

    def __init__(
        self,
        memory: Memory,
        symbols: KernelSymbols,
        drivers: Drivers,
        lists: ApcLists,
        processes: Processes,
        threads: Callable[[], Iterable[Thread]],
    ) -> None:
        self._drivers = drivers
        self._lists = lists
        self._processes = processes
        self._nested = NestedAttach(memory, symbols)
        self._stacks = StackRanges(memory, symbols, drivers, threads)

    def placed(self, thread: Thread) -> Thread:
        """Return the thread with its nested APC state, if any, and with every misplaced APC marked."""
        if thread.members.apc_state_index == 1 and not thread.idle:
            thread = self._with_nested(thread)
        queues = tuple(self._marked(queue, thread) for queue in thread.queues)
        return replace(thread, queues=queues) if queues != thread.queues else thread

    def _with_nested(self, thread: Thread) -> Thread:
        found = self._nested.search(thread.members, self._processes.known)
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
        for state in found.states:
            texts.append(f"_KAPC_STATE at {state.address:#x} on its stack for {self._processes.at(state.process)}")
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
        if apc.address < self._drivers.kernel_start:
            return replace(apc, misplaced="user space")
        holder = self._stacks.holder(apc.address, thread)
        if holder is None:
            return apc
        whose = "its own thread" if holder == thread.address else f"thread {holder:#x}"
        return replace(apc, misplaced=f"the kernel stack of {whose}")
