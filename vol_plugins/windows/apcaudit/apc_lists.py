"""Read a thread's APC lists: every queued KAPC, and how each list ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .drivers.loaded import Drivers
from .facts import PROCESS_OBJECT, THREAD_OBJECT
from .layout import Layout
from .memory import Memory
from .model import Apc, Ending, Queue, QueueName, Thread, ThreadMembers
from .queues import TOTAL_BOUND, Budget, Walk, walk

# _EPROCESS and _ETHREAD begin with their dispatcher header, and that with its type.
_PROCESS, _THREAD = bytes([PROCESS_OBJECT]), bytes([THREAD_OBJECT])


class ApcLists:
    """Reads the lists of _KTHREAD.ApcState and, in an attached thread, of SavedApcState.

    The lists of SavedApcState at ApcStateIndex 0 are stale leftovers and are never read. `budget` is what is left to
    follow, for this and every other walk of the audit.
    """

    def __init__(self, memory: Memory, layout: Layout, drivers: Drivers, *, total: int = TOTAL_BOUND) -> None:
        self._memory = memory
        self._layout = layout
        self._drivers = drivers
        self.budget = Budget(total)
        self._heads: set[int] = set()
        self._holders: dict[int, tuple[int, str]] = {}

    def quiet(self, address: int, members: ThreadMembers) -> bool:
        """Tell whether every list of the thread is empty with both links intact, without reading any further."""
        layout = self._layout
        head = address + layout.kernel_head
        user = address + layout.user_head
        return (
            members.apc_kernel_flink == head == members.apc_kernel_blink
            and members.apc_user_flink == user == members.apc_user_blink
            and (members.apc_state_index == 0 or self._saved_quiet(address, members))
        )

    def _saved_quiet(self, address: int, members: ThreadMembers) -> bool:
        if members.apc_state_index != 1:
            return True
        kernel, user = address + self._layout.saved_kernel_head, address + self._layout.saved_user_head
        return (
            members.saved_kernel_flink == kernel == members.saved_kernel_blink
            and members.saved_user_flink == user == members.saved_user_blink
        )

    def read(self, thread: Thread) -> tuple[Queue, ...]:
        """Walk the lists of a thread; those that are intact and empty are left out."""
        layout = self._layout
        heads = [
            (QueueName.KERNEL, thread.address + layout.kernel_head),
            (QueueName.USER, thread.address + layout.user_head),
        ]
        if thread.members.apc_state_index == 1:
            heads.append((QueueName.SAVED_KERNEL, thread.address + layout.saved_kernel_head))
            heads.append((QueueName.SAVED_USER, thread.address + layout.saved_user_head))
        return self.at(thread, heads)

    def at(self, thread: Thread, heads: Sequence[tuple[QueueName, int]], *, nested: bool = False) -> tuple[Queue, ...]:
        """Walk lists of a thread by the addresses of their heads; `nested` are those of a state on its stack."""
        own = {head for _, head in heads} | {thread.address + offset for _, offset in self._heads_of_thread()}
        # A list of threads that was tied into something else leads to what is no thread, whose heads are not another
        # thread's concern. That its process cannot be read says nothing.
        if self._is_believable(thread.members) is not False:
            self._heads |= own
        queues = (self._queue(thread, name, head, own, nested=nested) for name, head in heads)
        # Of a list that a minidump does not hold, nothing is known, not even that it is damaged.
        return tuple(queue for queue in queues if not queue.empty and not (self._memory.partial and _absent(queue)))

    def _queue(self, thread: Thread, name: QueueName, head: int, own: set[int], *, nested: bool) -> Queue:
        walked = walk(
            self._memory.links,
            head,
            pointer_size=self._layout.pointer_size,
            is_other_head=lambda address: address in own or self.is_head(address),
            bound=self.budget.of_a_list,
        )
        self.budget.spend(len(walked.entries))
        beyond, other_list = self._beyond(walked)
        apcs = []
        for position, entry in enumerate(walked.entries):
            address = entry - self._layout.apc_list_entry
            place = (thread.address, _list_name(name, thread.address, thread.members.tid))
            holder = self._holders.setdefault(address, place)
            also_on = holder[1] if holder != place else other_list if entry in beyond else None
            apc = self.apc(address, name, position, also_on=also_on)
            apcs.append(replace(apc, nested=True) if nested else apc)
        return Queue(name, head, tuple(apcs), walked.ending, walked.ended_at, walked.broken_at)

    def _beyond(self, walked: Walk) -> tuple[frozenset[int], str]:
        """Return the entries of the list that a walk ended in the head of, and that list's name; none else."""
        links = self._memory.links(walked.ended_at) if walked.ending is Ending.OTHER_HEAD else None
        if links is None:
            return frozenset(), ""
        head = links[0]
        bound = self.budget.of_a_list
        entries = walk(self._memory.links, head, pointer_size=self._layout.pointer_size, bound=bound).entries
        self.budget.spend(len(entries))
        for name, offset in self._heads_of_thread():
            members = self._thread_at(head - offset)
            if members is not None:
                return frozenset(entries), _list_name(name, head - offset, members.tid)
        return frozenset(entries), f"the list at {head:#x}"

    def is_head(self, address: int) -> bool:
        """Tell the head of a list of a thread: the thread's own, one read before, or one of an object like a thread."""
        if address in self._heads:
            return True
        return any(self._thread_at(address - offset) is not None for _, offset in self._heads_of_thread())

    def _heads_of_thread(self) -> tuple[tuple[QueueName, int], ...]:
        layout = self._layout
        return (
            (QueueName.KERNEL, layout.kernel_head),
            (QueueName.USER, layout.user_head),
            (QueueName.SAVED_KERNEL, layout.saved_kernel_head),
            (QueueName.SAVED_USER, layout.saved_user_head),
        )

    def _thread_at(self, address: int) -> ThreadMembers | None:
        """Return the members of an object that has what every thread has, its type and a process for an owner."""
        # Asked four times for every entry of a list: one byte tells of nearly all that it is no thread.
        if self._memory.read(address, 1) != _THREAD:
            return None
        decoder = self._layout.thread
        data = self._memory.read(address, decoder.size)
        if data is None:
            return None
        members = ThreadMembers._make(decoder(data))
        return members if self._is_believable(members) else None

    def _is_believable(self, members: ThreadMembers) -> bool | None:
        """Tell whether members can be a thread's, None where only its process, which cannot be read, would tell."""
        if members.dispatcher_type != THREAD_OBJECT or members.apc_state_index not in (0, 1) or not members.process:
            return False
        first = self._memory.read(members.process, 1)
        return None if first is None else first == _PROCESS

    def apc(self, address: int, queue: QueueName, position: int, *, also_on: str | None = None) -> Apc:
        """Read the KAPC at a virtual address; members in unreadable memory are None."""
        decoder = self._layout.apc
        data = self._memory.read(address, decoder.size)
        if data is not None:
            values = decoder(data)
        else:
            sparse, holes = self._memory.read_sparse(address, decoder.size)
            values = decoder.partial(sparse, holes)
        kind, size, thread, kernel, rundown, normal, context, argument1, argument2, index, mode, inserted = values
        code = self._drivers.code
        return Apc(
            address=address,
            queue=queue,
            position=position,
            type=kind,
            size=size,
            thread=thread,
            kernel_routine=None if kernel is None else code(kernel),
            rundown_routine=None if rundown is None else code(rundown),
            normal_routine=None if normal is None else code(normal),
            normal_context=context,
            system_argument1=argument1,
            system_argument2=argument2,
            apc_state_index=index,
            apc_mode=mode,
            inserted=inserted,
            also_on=also_on,
        )


def _list_name(name: QueueName, thread: int, tid: int | None) -> str:
    return f"the {name.value} list of thread {thread:#x} (TID {tid})"


def _absent(queue: Queue) -> bool:
    return queue.ending is Ending.UNREADABLE and not queue.apcs and queue.ended_at == queue.head
