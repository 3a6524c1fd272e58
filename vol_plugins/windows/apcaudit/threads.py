"""The threads of the image from every view: read whole, decoded from bytes, each once."""

from __future__ import annotations

from collections.abc import Iterator

from .layout import Layout
from .memory import Memory
from .model import Process, Thread, ThreadMembers, View
from .processes import Processes

THREAD_BOUND = 1_000_000
"""How many threads of one process are followed."""

_LIST = frozenset({View.LIST})


class Threads:
    """Finds threads and reads them; `notes` collects what was wrong with the lists themselves."""

    def __init__(self, memory: Memory, layout: Layout, processes: Processes) -> None:
        self._memory = memory
        self._layout = layout
        self._processes = processes
        self.seen: set[int] = set()
        self.notes: list[str] = []

    def members(self, address: int) -> ThreadMembers:
        """Read the _ETHREAD at a virtual address; members in unreadable memory are None."""
        decoder = self._layout.thread
        data = self._memory.read(address, decoder.size)
        if data is not None:
            return ThreadMembers._make(decoder(data))
        sparse, holes = self._memory.read_sparse(address, decoder.size)
        return ThreadMembers._make(decoder.partial(sparse, holes))

    def all(self) -> Iterator[Thread]:
        """Yield every thread that any view holds, each once, the process lists' first and in their order."""
        yield from self.listed()

    def listed(self) -> Iterator[Thread]:
        """Yield the threads of every listed process, in the order of the lists."""
        for process in self._processes.listed():
            yield from self.of(process)
        if not self._processes.complete:
            self.notes.append("PsActiveProcessHead does not close: processes may be missing from the list view")

    def of(self, process: Process) -> Iterator[Thread]:
        """Yield the threads on a process's ThreadListHead, from both ends where the list does not close."""
        head = process.address + self._processes.thread_list_head
        links = self._memory.links(head)
        if links is None:
            self.notes.append(f"the thread list of {process} could not be read")
            return
        offset = self._layout.thread_list_entry
        for forward in (True, False):
            entry: int | None = links[0] if forward else links[1]
            count = 0
            while entry != head and entry is not None and count < THREAD_BOUND:
                address = entry - offset
                if address in self.seen or entry % self._layout.pointer_size:
                    break
                members = self.members(address)
                if members.tid is None and members.thread_list_flink is None:
                    break
                self.seen.add(address)
                count += 1
                yield Thread(address, members, process, views=_LIST)
                entry = members.thread_list_flink if forward else members.thread_list_blink
            if entry == head:
                return
            if forward:
                self.notes.append(f"the thread list of {process} does not close: it is read from its other end too")
