"""Read a thread's APC lists: every queued KAPC, and how each list ended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ..formats.lists import ENTRIES_BEYOND, TOTAL_BOUND, Budget, Walk, walk
from ..kernel import Kernel
from ..members import PrefilterMembers
from ..model import Apc, Code, Ending, FoundThread, Queue, QueueName, ThreadMembers
from ..windows import APC_OBJECT, PROCESS_OBJECT, SPECIAL_USER_APC_ROUTINE, THREAD_OBJECT
from .placement import PlacementFinder

# The first byte of _EPROCESS and _ETHREAD is _DISPATCHER_HEADER.Type.
_PROCESS, _THREAD = bytes([PROCESS_OBJECT]), bytes([THREAD_OBJECT])


class ApcLists:
    """Reads the lists of _KTHREAD.ApcState and, in an attached thread, of SavedApcState.

    At ApcStateIndex 0 the lists of SavedApcState are stale leftovers: `read` leaves them out, only `find_lost` looks at
    them. `budget` limits how many entries this and all other walks of the audit may still follow.
    """

    def __init__(self, kernel: Kernel, placements: PlacementFinder, *, total: int = TOTAL_BOUND) -> None:
        self._memory = kernel.memory
        self._layout = kernel.layout
        self._drivers = kernel.drivers
        self._placements = placements
        self._special_user = kernel.symbols.address(SPECIAL_USER_APC_ROUTINE)
        self.budget = Budget(total)
        self._heads: set[int] = set()
        self._walks: dict[int, Walk] = {}
        self._heads_reached: set[int] = set()
        self._holders: dict[int, tuple[str, ...]] = {}

    def remember(self, thread: FoundThread) -> None:
        """Walk the lists of a thread and remember their entries, so that a list that shares some of them says so."""
        for name, head in self._heads_in_use(thread):
            if head not in self._walks:
                self._walk(thread, name, head)

    def nothing_lost(self, address: int, members: PrefilterMembers | ThreadMembers) -> bool:
        """Tell whether no entry of an unused SavedApcState's lists points back to its list head.

        Leftovers of an earlier attach do not point back: those APCs have run, and their memory is used again.
        """
        if not self._layout.has_state_pointer:
            return True
        links = self._memory.links
        for flink, offset in (
            (members.saved_kernel_flink, self._layout.saved_kernel_head),
            (members.saved_user_flink, self._layout.saved_user_head),
        ):
            head = address + offset
            if flink and flink != head:
                found = links(flink)
                if found is not None and found[1] == head:
                    return False
        return True

    def find_lost(self, thread: FoundThread) -> tuple[Apc, ...]:
        """Return the APCs that SavedApcState of a thread at ApcStateIndex 0 holds and that say they are queued there.

        They were queued for the attached environment after the thread had left it (ReactOS ke/apc.c,
        KiInsertQueueApc: the list is that of KAPC.ApcStateIndex). The next attach overwrites the lists.
        """
        if thread.members.apc_state_index != 0 or self.nothing_lost(thread.address, thread.members):
            return ()
        found = []
        for name, offset in (
            (QueueName.SAVED_KERNEL, self._layout.saved_kernel_head),
            (QueueName.SAVED_USER, self._layout.saved_user_head),
        ):
            head = thread.address + offset
            walked = walk(self._memory.links, head, pointer_size=self._layout.pointer_size, bound=ENTRIES_BEYOND)
            for position, entry in enumerate(walked.entries):
                apc = self.read_apc(entry - self._layout.apc_list_entry, name, position, thread=thread)
                if (apc.type, apc.inserted, apc.thread, apc.apc_state_index) != (APC_OBJECT, 1, thread.address, 1):
                    break
                found.append(apc)
        return tuple(found)

    def are_empty(self, address: int, members: ThreadMembers) -> bool:
        """Tell whether every list of the thread is empty with both links intact, without reading any further."""
        layout = self._layout
        head = address + layout.kernel_head
        user = address + layout.user_head
        return (
            members.apc_kernel_flink == head == members.apc_kernel_blink
            and members.apc_user_flink == user == members.apc_user_blink
            and (members.apc_state_index == 0 or self._saved_are_empty(address, members))
        )

    def _saved_are_empty(self, address: int, members: ThreadMembers) -> bool:
        if members.apc_state_index != 1:
            return True
        kernel, user = address + self._layout.saved_kernel_head, address + self._layout.saved_user_head
        return (
            members.saved_kernel_flink == kernel == members.saved_kernel_blink
            and members.saved_user_flink == user == members.saved_user_blink
        )

    def read(self, thread: FoundThread) -> tuple[Queue, ...]:
        """Walk the lists of a thread; those that are intact and empty are left out."""
        return self.read_at(thread, self._heads_in_use(thread))

    def _heads_in_use(self, thread: FoundThread) -> list[tuple[QueueName, int]]:
        layout = self._layout
        heads = [
            (QueueName.KERNEL, thread.address + layout.kernel_head),
            (QueueName.USER, thread.address + layout.user_head),
        ]
        if thread.members.apc_state_index == 1:
            heads.append((QueueName.SAVED_KERNEL, thread.address + layout.saved_kernel_head))
            heads.append((QueueName.SAVED_USER, thread.address + layout.saved_user_head))
        return heads

    def read_at(
        self, thread: FoundThread, heads: Sequence[tuple[QueueName, int]], *, nested: bool = False
    ) -> tuple[Queue, ...]:
        """Walk lists of a thread by the addresses of their heads; `nested` is for heads in a state on its stack."""
        queues = (self._queue(thread, name, head, nested=nested) for name, head in heads)
        # Nothing is known of a list whose head a minidump does not hold, not even whether it is damaged.
        partial = self._memory.partial
        return tuple(queue for queue in queues if not queue.empty and not (partial and _has_no_head(queue)))

    def _walk(self, thread: FoundThread, name: QueueName, head: int) -> Walk:
        """Walk a list once, and remember it as the holder of its entries."""
        own = {head} | {thread.address + offset for _, offset in self._heads_of_thread()}
        # A thread list that was linked into another structure leads to objects that are no threads; their "heads" must
        # not end other walks. An unreadable process does not show that an object is no thread.
        if self._is_believable(thread.members) is not False:
            self._heads |= own
        place = _list_name(name, thread.address, thread.members.tid)
        # A walk of another list has ended in this head: the entries that they share belong to this list.
        is_rightful = head in self._heads_reached

        def in_other_list(entry: int) -> bool:
            holders = self._holders.get(entry, (place,))
            return place not in holders and not is_rightful and self._thread_of(entry) != thread.address

        walked = walk(
            self._memory.links,
            head,
            pointer_size=self._layout.pointer_size,
            is_other_head=lambda address: address in own or self.is_head(address),
            in_other_list=in_other_list,
            bound=self.budget.per_list,
        )
        self.budget.spend(len(walked.entries))
        walked = self._add_absent_entry(walked, head)
        self._walks[head] = walked
        self._remember_holder(walked.entries, place)
        self._remember_holder(*self._entries_of_other_list(walked))
        return walked

    def _add_absent_entry(self, walked: Walk, head: int) -> Walk:
        """Add the entry at which the walk left the memory of a minidump; other walks are returned as they are.

        The kernel follows Flink, so a link to kernel space that no byte in the dump contradicts leads to an entry.
        """
        entry = walked.led_to
        if not self._memory.partial or walked.ending is not Ending.UNREADABLE or entry is None:
            return walked
        if not self._is_kernel_address(entry):
            return walked
        links = self._memory.links(head)
        blink = None if links is None else links[1]
        broken_at = walked.broken_at
        if broken_at is None and (blink is None or blink == head or not self._is_kernel_address(blink)):
            broken_at = head
        return replace(
            walked, entries=(*walked.entries, entry), ending=Ending.ABSENT, broken_at=broken_at, led_to=entry
        )

    def _is_kernel_address(self, address: int) -> bool:
        return address >= self._drivers.kernel_start and self._memory.is_canonical(address)

    def _remember_holder(self, entries: Iterable[int], place: str) -> None:
        """Remember the list that holds entries; two per entry suffice, since one of the two is not the list asking."""
        alone = (place,)
        for entry in entries:
            holders = self._holders.setdefault(entry, alone)
            if len(holders) == 1 and place not in holders:
                self._holders[entry] = (*holders, place)

    def has_met(self, entry: int) -> bool:
        """Tell whether the walk of some thread's list has passed a LIST_ENTRY."""
        return entry in self._holders

    def _thread_of(self, entry: int) -> int | None:
        """Return the _KAPC.Thread of an entry."""
        data = self._memory.read(entry - self._layout.apc_list_entry, self._layout.apc.size)
        _type, _size, thread, *_others = self._layout.apc(data) if data is not None else (None, None, None)
        return thread

    def _queue(self, thread: FoundThread, name: QueueName, head: int, *, nested: bool) -> Queue:
        walked = self._walks.get(head) or self._walk(thread, name, head)
        place = _list_name(name, thread.address, thread.members.tid)
        apcs = []
        for position, entry in enumerate(walked.entries):
            others = [each for each in self._holders.get(entry, ()) if each != place]
            address = entry - self._layout.apc_list_entry
            also_on = others[0] if others else None
            apcs.append(self.read_apc(address, name, position, thread=thread, also_on=also_on, nested=nested))
        return Queue(name, head, tuple(apcs), walked.ending, walked.ended_at, walked.broken_at, walked.led_to)

    def _entries_of_other_list(self, walked: Walk) -> tuple[frozenset[int], str]:
        """Return the entries of a walk that belong to the list in whose head it ended, and that list's name."""
        links = self._memory.links(walked.ended_at) if walked.ending is Ending.OTHER_HEAD else None
        if links is None:
            return frozenset(), ""
        head = links[0]
        self._heads_reached.add(head)
        shared = []
        before = self._memory.links(head)
        for entry in reversed(walked.entries):
            if before is None or before[1] != entry:
                break
            shared.append(entry)
            before = self._memory.links(entry)
        return frozenset(shared), self._name_of(head) if shared else ""

    def _name_of(self, head: int) -> str:
        """Name a list by its head."""
        for name, offset in self._heads_of_thread():
            members = self._thread_at(head - offset)
            if members is not None:
                return _list_name(name, head - offset, members.tid)
        return f"the list at {head:#x}"

    def is_head(self, address: int) -> bool:
        """Tell whether an address is an APC list head: one that was read, or one in an object that can be a thread."""
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
        """Return the members of an object that can be a thread: its type is right, and its owner is a process."""
        # Asked four times for every entry of a list: one byte excludes nearly all other memory.
        if self._memory.read(address, 1) != _THREAD:
            return None
        decoder = self._layout.thread
        data = self._memory.read(address, decoder.size)
        if data is None:
            return None
        members = ThreadMembers._make(decoder(data))
        return members if self._is_believable(members) else None

    def _is_believable(self, members: ThreadMembers) -> bool | None:
        """Tell whether members can be a thread's; None when only its process would show it, which cannot be read."""
        if members.dispatcher_type != THREAD_OBJECT or members.apc_state_index not in (0, 1) or not members.process:
            return False
        first = self._memory.read(members.process, 1)
        return None if first is None else first == _PROCESS

    def read_apc(
        self,
        address: int,
        queue: QueueName,
        position: int,
        *,
        thread: FoundThread | None = None,
        also_on: str | None = None,
        nested: bool = False,
        of_bugcheck: bool = False,
    ) -> Apc:
        """Read the KAPC at a virtual address; members in unreadable memory are None.

        Args:
            address: of the _KAPC.
            queue: the list that it hangs on.
            position: its place there.
            thread: the one that has the list, of which the KAPC may be a member.
            also_on: another list that holds it.
            nested: whether the list is one of a third APC state, on the thread's stack.
            of_bugcheck: whether a parameter of the bugcheck names it.
        """
        decoder = self._layout.apc
        data = self._memory.read(address, decoder.size)
        if data is not None:
            values = decoder(data)
        else:
            sparse, holes = self._memory.read_sparse(address, decoder.size)
            values = decoder.partial(sparse, holes)
        kind, size, its_thread, kernel, rundown, normal, context, argument1, argument2, index, mode, inserted = values
        place = self._placements.find(address, thread)
        member = None
        if thread is not None and queue is not QueueName.OFF_LIST:
            member = self._layout.embedded.get(address - thread.address)
        code = self._code
        return Apc(
            address=address,
            queue=queue,
            position=position,
            type=kind,
            size=size,
            thread=its_thread,
            kernel_routine=None if kernel is None else code(kernel, thread),
            rundown_routine=None if rundown is None else code(rundown, thread),
            normal_routine=None if normal is None else code(normal, thread),
            normal_context=context,
            system_argument1=argument1,
            system_argument2=argument2,
            apc_state_index=index,
            apc_mode=mode,
            inserted=inserted,
            member=member,
            also_on=also_on,
            misplaced=place.text,
            on_stack=place.on_stack,
            nested=nested,
            of_bugcheck=of_bugcheck,
            special_user=kernel is not None and kernel == self._special_user,
        )

    def _code(self, address: int, thread: FoundThread | None) -> Code:
        """Name a routine and, where no module holds it, the memory that it lies in."""
        return self._placements.add_region(self._drivers.routine(address), thread)


def _list_name(name: QueueName, thread: int, tid: int | None) -> str:
    return f"the {name.value} list of thread {thread:#x} (TID {tid})"


def _has_no_head(queue: Queue) -> bool:
    return queue.ending is Ending.UNREADABLE and queue.led_to is None
