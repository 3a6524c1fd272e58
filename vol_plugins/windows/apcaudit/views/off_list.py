"""KAPCs that the scan found to be queued, by what they say, and that no list holds."""

from __future__ import annotations

from .. import facts as windows
from ..apc_lists import ApcLists
from ..layout import Layout
from ..memory import PAGE, Memory
from ..model import Apc, Backing, Ending, Queue, QueueName, Thread
from ..queues import walk
from .mappings import kernel_addresses


class OffList:
    """Judges the scan's KAPCs thread by thread; `unmapped` counts those that no kernel address maps."""

    def __init__(
        self, memory: Memory, layout: Layout, lists: ApcLists, found: dict[int, list[int]], kernel_start: int
    ) -> None:
        self._memory = memory
        self._layout = layout
        self._lists = lists
        self._found = found
        self._kernel_start = kernel_start
        self._pages: dict[int, int] | None = None
        self.unmapped = 0

    @property
    def threads(self) -> frozenset[int]:
        """The threads that some KAPC that was found names, by virtual address."""
        return frozenset(self._found)

    def names(self, address: int) -> bool:
        """Tell whether some KAPC that was found names the thread at a virtual address."""
        return address in self._found

    def of(self, thread: Thread, queues: tuple[Queue, ...]) -> Queue | None:
        """Return the KAPCs that say they are queued to a live thread and are on no list, None when there are none.

        Args:
            thread: the thread.
            queues: its lists as they were read.
        """
        if thread.members.state == windows.TERMINATED:
            # What it did not live to run lies in memory until that is used again.
            return None
        listed = {self._memory.physical(apc.address) for queue in queues for apc in queue.apcs}
        apcs: list[Apc] = []
        for physical in self._found.get(thread.address, ()):
            if physical in listed:
                continue
            address = self._address(physical, thread)
            if address is None:
                self.unmapped += 1
            elif not self._on_a_list(address + self._layout.apc_list_entry):
                apc = self._lists.apc(address, QueueName.OFF_LIST, len(apcs))
                if apc.inserted and apc.kernel_routine is not None and apc.kernel_routine.backing is not Backing.USER:
                    apcs.append(apc)
        return Queue(QueueName.OFF_LIST, 0, tuple(apcs), Ending.CLOSED, 0) if apcs else None

    def _address(self, physical: int, thread: Thread) -> int | None:
        """Return a kernel address of a KAPC: from the thread that embeds it, else from the page tables."""
        start = self._memory.physical(thread.address)
        if start is not None and 0 <= physical - start < self._layout.thread.size:
            return thread.address + physical - start
        if self._pages is None:
            pages = (each for found in self._found.values() for each in found)
            self._pages = kernel_addresses(self._memory, pages, self._kernel_start)
        page = self._pages.get(physical & ~(PAGE - 1))
        return None if page is None else page + physical % PAGE

    def _on_a_list(self, entry: int) -> bool:
        """Tell whether a walk from the head of some thread's list comes by a LIST_ENTRY.

        The entry's own links may be stale: they only tell which head to ask.
        """
        ring = walk(self._memory.links, entry, pointer_size=self._layout.pointer_size).entries
        for head in ring:
            if self._lists.is_head(head):
                return entry in walk(self._memory.links, head, pointer_size=self._layout.pointer_size).entries
        return False
