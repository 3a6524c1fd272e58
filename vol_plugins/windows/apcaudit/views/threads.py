"""The threads of the image from every view: read whole, decoded from bytes, each once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .. import facts as windows
from ..absence import Absence, neighbours_of
from ..layout import Layout
from ..memory import Memory
from ..model import Process, Thread, View
from ..processes import Processes
from ..structures import Apart
from ..thread_members import Glance, ThreadMembers
from .system_time import SystemTime
from .views import Views

Passes = Callable[[int, Glance, bytes], bool]

THREAD_BOUND = 1_000_000
"""How many threads are followed, of all processes together."""

NAMED_BOUND = 8
"""How many processes are named whose lists are damaged; of more it is said how many there are."""


class Threads:
    """Finds threads and reads them; `notes` says what was wrong with the lists themselves, once all have been given.

    `stopped` is whether the image is of a machine that stood still, so that its parts are of one moment.
    """

    def __init__(
        self,
        memory: Memory,
        layout: Layout,
        processes: Processes,
        views: Views,
        time: SystemTime,
        *,
        stopped: bool = False,
    ) -> None:
        self._memory = memory
        self._layout = layout
        self._processes = processes
        self._views = views
        self._time = time
        self._stopped = stopped
        self._closed: dict[int, bool] = {}
        self._passes: Passes | None = None
        self._left = THREAD_BOUND
        self._apart = Apart(layout.thread.size)
        self._open: list[Process] = []
        self._unread: list[Process] = []
        self._notes: list[str] = []

    @property
    def notes(self) -> tuple[str, ...]:
        """What was wrong with the lists."""
        overlapping = self._processes.overlapping
        notes = [f"the thread list of {which} could not be read" for which in _named(self._unread)]
        notes += [
            f"the thread list of {which} does not close: it is read from its other end too"
            for which in _named(self._open)
        ]
        if overlapping:
            notes.append(f"{overlapping} processes of PsActiveProcessHead are left out: they lie in others' memory")
        if self._left <= 0:
            notes.append(f"more than {THREAD_BOUND:,} threads are listed: those beyond are left out")
        return (*notes, *self._notes)

    def members(self, address: int) -> ThreadMembers:
        """Read the _ETHREAD at a virtual address; members in unreadable memory are None."""
        decoder = self._layout.thread
        data = self._memory.read(address, decoder.size)
        if data is not None:
            return ThreadMembers._make(decoder(data))
        sparse, holes = self._memory.read_sparse(address, decoder.size)
        return ThreadMembers._make(decoder.partial(sparse, holes))

    def all(self, passes: Passes | None = None) -> Iterator[Thread]:
        """Yield every thread that any view holds, each once, the process lists' first and in their order.

        Of the listed threads that every view holds, those that `passes` lets pass are left out: it tells of the thread
        at a virtual address whether nothing is to be found in it.
        """
        self._passes = passes
        yield from self.listed()
        if not self._views.cid.evidence:
            self._notes.append("PspCidTable was not read whole: threads that only it holds may be missing")
        for address, cid in self._views.others():
            if not self._views.met(address, cid):
                yield from self._other(address, cid)

    def listed(self) -> Iterator[Thread]:
        """Yield the threads of every listed process, in the order of the lists."""
        for process in self._processes.listed():
            yield from self.of(process)
        if not self._processes.complete:
            self._notes.append("PsActiveProcessHead does not close: processes may be missing from the list view")

    def of(self, process: Process, *, listed: bool | None = True) -> Iterator[Thread]:
        """Yield the threads on a process's ThreadListHead, from both ends where the list does not close."""
        head = process.address + self._processes.thread_list_head
        self._closed[process.address] = False
        links = self._memory.links(head)
        if links is None:
            self._unread.append(process)
            return
        offset = self._layout.thread_list_entry
        # Bound to locals: this loop is the walk's cost.
        read, size, glance_at = self._memory.read, self._layout.thread.size, self._layout.glance
        meet, usual, passes = self._views.meet, self._views.usual, self._passes
        for forward in (True, False):
            entry: int | None = links[0] if forward else links[1]
            while entry != head and entry is not None and self._left > 0:
                address = entry - offset
                if entry % self._layout.pointer_size:
                    break
                data = read(address, size)
                glance = None if data is None else Glance._make(glance_at(data))
                seen = self.members(address) if glance is None else glance
                if seen.tid is None and seen.thread_list_flink is None:
                    break
                if seen.process != process.address and self._is_foreign(address, seen.process, process):
                    break
                views = meet(address, seen.tid, listed=True)
                if views is None:
                    break
                self._left -= 1
                entry = seen.thread_list_flink if forward else seen.thread_list_blink
                if views is usual and listed and seen.process == process.address:
                    if passes is None or glance is None or data is None or not passes(address, glance, data):
                        yield Thread(address, self.members(address), process, views=views)
                elif not self._apart.takes(address):
                    break
                else:
                    yield self._unusual(address, self.members(address), process, views, listed)
            if entry == head:
                self._closed[process.address] = True
                return
            if forward:
                self._open.append(process)

    def _is_foreign(self, address: int, claimed: int | None, process: Process) -> bool:
        """Tell whether a thread on a process's list is another one's, by its own process and its own PID together.

        There a list was tied into another: what follows is to be read from that process's own head.
        """
        if not claimed or claimed == process.address:
            return False
        pid = self._processes.at(claimed).pid
        return pid is not None and pid != process.pid and pid == self.members(address).pid

    def _other(self, address: int, cid: int | None) -> Iterator[Thread]:
        """Yield what other views call a thread, if it is one, and the threads of its process if that is not listed."""
        members = self.members(address)
        owner = self._owner(address, members, cid)
        if owner is None and (address not in self._views.named or members.state is None):
            return
        listed: bool | None = None
        if owner is not None:
            if owner.address in self._closed:
                listed = True
            else:
                # The idle process is never in the list; a list with holes in it proves nothing.
                listed = False if owner.pid and self._processes.complete else None
                yield from self.of(owner, listed=listed)
        views = self._views.meet(address, members.tid, listed=False)
        if views is not None:
            yield self._unusual(address, members, owner, views, listed)

    def _owner(self, address: int, members: ThreadMembers, cid: int | None) -> Process | None:
        """Return the process of what may be a thread; None when it contradicts itself and so is none."""
        if members.tid is None or members.state is None or members.state > windows.IN_SWAP:
            return None
        process = self._claimed(members)
        if (cid is not None and members.tid != cid) or not process or address % self._layout.pointer_size:
            return None
        owner = self._processes.at(process)
        if owner.pid is None:
            return owner if members.dispatcher_type == windows.THREAD_OBJECT else None
        if owner.pid == members.pid and members.tid % windows.ID_STEP == 0:
            return owner
        # The scan has seen that it is a thread of a process: IDs that contradict that are a lie, not another object.
        # Of one that has ended, the process's memory may be another process's by now.
        live = members.state != windows.TERMINATED and self._views.scanned(address)
        return owner if live and owner.address in self._processes.known else None

    def _claimed(self, members: ThreadMembers) -> int | None:
        """Return the process that a thread names: by its own member, else by the APC state that is its own."""
        process = members.process
        if process and self._processes.is_object(process):
            return process
        own = {0: members.apc_process, 1: members.saved_process}.get(members.apc_state_index or 0)
        return own if own and self._processes.is_object(own) else process

    def _unusual(
        self,
        address: int,
        members: ThreadMembers,
        owner: Process | None,
        views: frozenset[View],
        owner_listed: bool | None,
    ) -> Thread:
        """Make a thread with what the processors tell of it and with the evidence if a view misses it."""
        processor = self._views.running.get(address)
        return Thread(
            address,
            members,
            owner,
            views=views,
            processor=None if processor is None else processor.number,
            idle=address in self._views.idle,
            irql=processor.saved_irql if processor is not None and self._stopped else None,
            absence=self._absence(address, members, owner, views),
            owner_listed=owner_listed,
        )

    def _absence(
        self, address: int, members: ThreadMembers, owner: Process | None, views: frozenset[View]
    ) -> Absence | None:
        late = self._time.is_after(members.create_time)
        if View.LIST in views:
            # ID 0 is the idle threads'; the table has none.
            if View.CID in views or not members.tid or not self._views.cid.evidence:
                return None
            return Absence("cid", None, late, self._stopped)
        if owner is None or not self._closed.get(owner.address):
            return None
        entry = address + self._layout.thread_list_entry
        links = members.thread_list_flink, members.thread_list_blink
        if links[0] is None or links[1] is None:
            return Absence("list", None, late, self._stopped)
        around = self._memory.links(links[0]), self._memory.links(links[1])
        return Absence("list", neighbours_of(entry, (links[0], links[1]), around), late, self._stopped)


def _named(processes: list[Process]) -> list[str]:
    """Name the first of the processes, and say how many more there are."""
    more = len(processes) - NAMED_BOUND
    return [*map(str, processes[:NAMED_BOUND]), *([f"{more} more processes"] if more > 0 else [])]
