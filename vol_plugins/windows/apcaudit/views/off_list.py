"""KAPCs that the scan found to be queued, by what they say, and that no list holds."""

from __future__ import annotations

from collections.abc import Iterator

from .. import facts as windows
from ..apc_lists import ApcLists
from ..layout import Layout
from ..memory import PAGE, Memory
from ..model import Apc, Backing, Ending, Queue, QueueName, Thread
from .held_entries import HeldEntries
from .mappings import kernel_addresses


class OffList:
    """Judges the scan's KAPCs thread by thread.

    `unmapped` counts those that no kernel address maps, `undecided` those whose list goes on too far to tell whether
    it holds them, `left_out` those that no list holds beyond as many as are reported of one thread.
    """

    def __init__(
        self, memory: Memory, layout: Layout, lists: ApcLists, found: dict[int, list[int]], kernel_start: int
    ) -> None:
        self._memory = memory
        self._layout = layout
        self._lists = lists
        self._found = found
        self._kernel_start = kernel_start
        self._held = HeldEntries(memory, lists)
        self._pages: dict[int, int] | None = None
        self.unmapped = 0
        self.undecided = 0
        self.left_out = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out so far, and why."""
        texts = (
            (self.unmapped, "APCs of the scan are left out: no kernel address maps them"),
            (self.undecided, "APCs of the scan may hang on lists that are followed no further"),
            (self.left_out, "more APCs of the scan that no list holds are left out"),
        )
        return tuple(f"{count} {text}" for count, text in texts if count)

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
        listed = {self._memory.physical(apc.address): apc.address for queue in queues for apc in queue.apcs}
        for queue in queues:
            if queue.ending is Ending.BOUND:
                self._held.follow(queue.head)
        held = list(listed.values())
        loose: list[int] = []
        for physical in self._found.get(thread.address, ()):
            if physical in listed:
                continue
            address = self._address(physical, thread)
            if address is None:
                self.unmapped += 1
                continue
            on_a_list = self._held.holds(address + self._layout.apc_list_entry)
            if on_a_list is None:
                self.undecided += 1
            else:
                (held if on_a_list else loose).append(address)
        apcs = tuple(self._reported(self._originals(loose, held))) if loose else ()
        return Queue(QueueName.OFF_LIST, 0, apcs, Ending.CLOSED, 0) if apcs else None

    def _originals(self, loose: list[int], held: list[int]) -> list[int]:
        """Leave out copies: of a KAPC on a list, whatever its links were when the page was copied, and of each other.

        Of several alike, links included, the one that points to itself is the original, else the first: that it was
        unlinked is told once.
        """
        entry = self._layout.apc_list_entry
        known = {self._content(address) for address in held}
        of_pages = {self._in_page(address) for address in held}
        own = [address for address in loose if self._memory.links(address + entry) == (address + entry,) * 2]
        originals: set[int] = set()
        for address in (*own, *loose):
            content = self._content(address)
            if content is None or (content not in known and self._in_page(address) not in of_pages):
                originals.add(address)
                known.add(content)
        return sorted(originals)

    def _content(self, address: int) -> bytes | None:
        return self._memory.read(address, self._layout.apc.size)

    def _in_page(self, address: int) -> tuple[int, bytes]:
        """Return where in its page a KAPC lies and all of it but its links: what a copy of the page keeps."""
        content, links = self._content(address) or b"", self._layout.apc_list_entry
        return address % PAGE, content[:links] + content[links + 2 * self._layout.pointer_size :]

    def _reported(self, addresses: list[int]) -> Iterator[Apc]:
        bound = self._lists.budget.of_a_list
        position = 0
        for address in addresses:
            apc = self._lists.apc(address, QueueName.OFF_LIST, position)
            if not apc.inserted or apc.kernel_routine is None or apc.kernel_routine.backing is Backing.USER:
                continue
            if position < bound:
                yield apc
                position += 1
            else:
                self.left_out += 1
        self._lists.budget.spend(position)

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
