"""Every thread that any view of the image holds, and which views hold it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet

from .. import windows
from ..image.structures import DisjointObjects, SystemTime
from ..kernel import Kernel
from ..members import PrefilterMembers, ThreadMembers
from ..model import Absence, FoundThread, Process, View, neighbours_of
from ..windows import ID_STEP
from .kernel_views import CidTable, Processor

_ORDER = (View.LIST, View.CID, View.CPU, View.SCAN, View.DUMP)
_LIST, _CID, _CPU, _SCAN, _DUMP = (1 << bit for bit in range(5))

# Every combination of views, made once: a thread then costs a look-up and not a new set.
_SETS = tuple(frozenset(view for bit, view in enumerate(_ORDER) if mask >> bit & 1) for mask in range(1 << len(_ORDER)))


class Views:
    """The views other than the process lists, all read first, so that each listed thread can be given with its views.

    `usual` is the set of views of a thread that every view holds, `named` are the threads that a processor or the
    dump's header names.
    """

    def __init__(
        self,
        cid: CidTable,
        processors: tuple[Processor, ...] = (),
        dumped: tuple[int, ...] = (),
        scanned: Mapping[int, int] | None = None,
    ) -> None:
        self.cid = cid
        self._objects = cid.objects
        self._has_objects = bool(cid.objects)
        self._met = bytearray(cid.objects.ids // ID_STEP)
        self._others_met: set[int] = set()
        self._named_met: set[int] = set()
        self._scanned: AbstractSet[int] = scanned.keys() if scanned is not None else frozenset()
        self.running = {each.current: each for each in processors if each.current}
        self.idle = frozenset(each.idle for each in processors if each.idle)
        following = {each.next for each in processors if each.next}
        self._cpu_or_dump: dict[int, int] = dict.fromkeys(following | self.idle | set(self.running), _CPU)
        for address in dumped:
            self._cpu_or_dump[address] = self._cpu_or_dump.get(address, 0) | _DUMP
        usual = _LIST | (_CID if self._has_objects else 0) | (_SCAN if self._scanned else 0)
        self.usual = _SETS[usual]
        self.named: AbstractSet[int] = self._cpu_or_dump.keys()

    def meet(self, address: int, tid: int | None, *, listed: bool) -> frozenset[View] | None:
        """Return the views that hold the thread at a virtual address, None when it has been met before.

        A thread that the CID table has under the thread's own ID is remembered by one byte, others by their addresses.
        """
        mask = _LIST if listed else 0
        if tid is not None and self._objects.get(tid) == address:
            mask |= _CID
            index = tid // ID_STEP
            if self._met[index]:
                return None
            self._met[index] = 1
        elif address in self._others_met:
            return None
        else:
            self._others_met.add(address)
        if address in self._cpu_or_dump:
            mask |= self._cpu_or_dump[address]
            self._named_met.add(address)
        if address in self._scanned:
            mask |= _SCAN
        return _SETS[mask]

    def scanned(self, address: int) -> bool:
        """Tell whether the scan found the thread at a virtual address."""
        return address in self._scanned

    def met(self, address: int, cid: int | None) -> bool:
        """Tell whether the thread at a virtual address has been met; `cid` is its ID in the CID table, None without."""
        return address in self._others_met or (cid is not None and bool(self._met[cid // ID_STEP]))

    def others(self) -> Iterator[tuple[int, int | None]]:
        """Yield (address, ID in the CID table) of the threads of these views that have not been met."""
        met, others_met = self._met, self._others_met
        unmet = self._objects.without(met)
        by_address = {address: cid for cid, address in unmet if address not in others_met}
        known = others_met | self._named_met
        left = {each for each in (*self._cpu_or_dump, *self._scanned) if each not in known and each not in by_address}
        if left and self._scanned:
            # A thread that was met under its ID is not among the remembered addresses: look for it in the table.
            left -= {address for cid, address in self._objects.items() if address in left and met[cid // ID_STEP]}
        by_address.update(dict.fromkeys(left, 0))
        for address in sorted(by_address):
            yield address, by_address[address] or None


_IDLE = (0, 0)
"""UniqueProcess and UniqueThread of an idle thread."""

IsClean = Callable[[int, PrefilterMembers, bytes], bool]

THREAD_BOUND = 1_000_000
"""How many threads of all processes together are followed."""

NAMED_BOUND = 8
"""How many processes with damaged lists a note names; the others are counted."""


class Threads:
    """Finds threads and reads them; `notes` is complete once all threads have been given.

    `stopped` is whether a bugcheck had stopped the machine, so that all parts of the image are of one moment.
    """

    def __init__(
        self,
        kernel: Kernel,
        views: Views,
        time: SystemTime,
        *,
        stopped: bool = False,
    ) -> None:
        self._memory, self._layout, self._processes = kernel.memory, kernel.layout, kernel.processes
        self._views = views
        self._time = time
        self._stopped = stopped
        self._closed: dict[int, bool] = {}
        self._is_clean: IsClean | None = None
        self._left = THREAD_BOUND
        self._unlisted = 0
        self._disjoint = DisjointObjects(kernel.layout.thread.size)
        self._open: list[Process] = []
        self._unread: list[Process] = []
        self._notes: list[str] = []

    @property
    def notes(self) -> tuple[str, ...]:
        """What was wrong with the process and thread lists."""
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

    @property
    def seen(self) -> int:
        """How many threads have been met."""
        return THREAD_BOUND - self._left + self._unlisted

    def members(self, address: int) -> ThreadMembers:
        """Read the _ETHREAD at a virtual address; members in unreadable memory are None."""
        decoder = self._layout.thread
        data = self._memory.read(address, decoder.size)
        if data is not None:
            return ThreadMembers._make(decoder(data))
        sparse, holes = self._memory.read_sparse(address, decoder.size)
        return ThreadMembers._make(decoder.partial(sparse, holes))

    def all(self, is_clean: IsClean | None = None) -> Iterator[FoundThread]:
        """Yield every thread that any view holds, each once: first those of the process lists, in the lists' order.

        A listed thread that every view holds is left out if `is_clean` says that no check can find anything in it.
        """
        self._is_clean = is_clean
        yield from self.listed()
        if not self._views.cid.evidence:
            self._notes.append("PspCidTable was not read whole: threads that only it holds may be missing")
        for address, cid in self._views.others():
            if not self._views.met(address, cid):
                yield from self._find_unlisted(address, cid)

    def listed(self) -> Iterator[FoundThread]:
        """Yield the threads of every listed process, in the order of the lists."""
        for process in self._processes.listed():
            yield from self.walk(process)
        if not self._processes.complete:
            self._notes.append("PsActiveProcessHead does not close: processes may be missing from the list view")

    def walk(self, process: Process, *, listed: bool | None = True) -> Iterator[FoundThread]:
        """Yield the threads on a process's ThreadListHead, from both ends where the list does not close."""
        head = process.address + self._processes.thread_list_head
        self._closed[process.address] = False
        links = self._memory.links(head)
        if links is None:
            self._unread.append(process)
            return
        offset = self._layout.thread_list_entry
        # Local names, since nearly all time of the walk is spent in this loop.
        read, size, decode = self._memory.read, self._layout.thread.size, self._layout.prefilter
        meet, usual, is_clean = self._views.meet, self._views.usual, self._is_clean
        # What _make does, without its check of the number of members, which takes as long as decoding them.
        make = tuple.__new__
        for forward in (True, False):
            entry: int | None = links[0] if forward else links[1]
            while entry != head and entry is not None and self._left > 0:
                address = entry - offset
                if entry % self._layout.pointer_size:
                    break
                data = read(address, size)
                key_members = None if data is None else make(PrefilterMembers, decode(data))
                seen = self.members(address) if key_members is None else key_members
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
                    if (
                        is_clean is None
                        or key_members is None
                        or data is None
                        or not is_clean(address, key_members, data)
                    ):
                        yield FoundThread(address, self.members(address), process, views=views)
                elif not self._disjoint.add(address):
                    break
                else:
                    yield self._with_evidence(address, self.members(address), process, views, listed)
            if entry == head:
                self._closed[process.address] = True
                return
            if forward:
                self._open.append(process)

    def _is_foreign(self, address: int, claimed: int | None, process: Process) -> bool:
        """Tell whether a thread on a process's list belongs to another process: its Process and its PID both say so.

        Then one list was linked into another. What follows is read from the head of the other process's list.
        """
        if not claimed or claimed == process.address:
            return False
        pid = self._processes.read(claimed).pid
        return pid is not None and pid != process.pid and pid == self.members(address).pid

    def _find_unlisted(self, address: int, cid: int | None) -> Iterator[FoundThread]:
        """Yield a thread that only other views hold, if it is one, and the threads of its process if it is unlisted."""
        members = self.members(address)
        owner = self._owner(address, members, cid)
        if owner is None and (address not in self._views.named or members.state is None):
            return
        listed: bool | None = None
        if owner is not None:
            if owner.address in self._closed:
                listed = True
            else:
                # The idle process is never in the list, and a list that does not close proves nothing.
                listed = False if owner.pid and self._processes.complete else None
                yield from self.walk(owner, listed=listed)
        views = self._views.meet(address, members.tid, listed=False)
        if views is not None:
            self._unlisted += 1
            yield self._with_evidence(address, members, owner, views, listed)

    def _owner(self, address: int, members: ThreadMembers, cid: int | None) -> Process | None:
        """Return the process of a possible thread; None when its members contradict one another, so that it is none."""
        if members.tid is None or members.state is None or members.state > windows.IN_SWAP:
            return None
        process = self._claimed(members)
        if (cid is not None and members.tid != cid) or not process or address % self._layout.pointer_size:
            return None
        owner = self._processes.read(process)
        if owner.pid is None:
            return owner if members.dispatcher_type == windows.THREAD_OBJECT else None
        if owner.pid == members.pid and members.tid % windows.ID_STEP == 0:
            return owner
        # The scan has shown that it is a thread of a process: IDs that contradict this were changed, and it is no other
        # object. Where the thread has ended, another process may use the memory of its process by now.
        live = members.state != windows.TERMINATED and self._views.scanned(address)
        return owner if live and owner.address in self._processes.known else None

    def _claimed(self, members: ThreadMembers) -> int | None:
        """Return the process that a thread names in its Process member, else in the APC state of its own process."""
        process = members.process
        if process and self._processes.is_object(process):
            return process
        own = {0: members.apc_process, 1: members.saved_process}.get(members.apc_state_index or 0)
        return own if own and self._processes.is_object(own) else process

    def _with_evidence(
        self,
        address: int,
        members: ThreadMembers,
        owner: Process | None,
        views: frozenset[View],
        owner_listed: bool | None,
    ) -> FoundThread:
        """Make a thread with its processor, its IRQL and, if a view misses it, the evidence."""
        processor = self._views.running.get(address)
        return FoundThread(
            address,
            members,
            owner,
            views=views,
            processor=None if processor is None else processor.number,
            idle=address in self._views.idle or (members.pid, members.tid) == _IDLE,
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
    """Name the first processes, and count the others."""
    more = len(processes) - NAMED_BOUND
    return [*map(str, processes[:NAMED_BOUND]), *([f"{more} more processes"] if more > 0 else [])]
