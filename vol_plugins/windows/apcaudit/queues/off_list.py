"""KAPCs whose Inserted says that they are queued, and that no list holds."""

from __future__ import annotations

from collections.abc import Iterator

from .. import windows
from ..formats.lists import walk
from ..image.page_tables import kernel_addresses
from ..kernel import Kernel
from ..model import Apc, Backing, Ending, FoundThread, Queue, QueueName
from ..windows import PAGE_SIZE
from .apc_lists import ApcLists

_NOWHERE = 0
_TOO_FAR = -1
"""In place of a list head's address: the Flinks lead to no list head; no head within the bound."""


class HeldEntries:
    """Decides whether a LIST_ENTRY is on a thread's APC list; the entries followed count against `ApcLists.budget`."""

    def __init__(self, kernel: Kernel, lists: ApcLists) -> None:
        self._memory = kernel.memory
        self._lists = lists
        self._held: set[int] = set()
        self._whole: dict[int, bool] = {}
        self._head_of: dict[int, int] = {}

    def follow(self, head: int) -> bool:
        """Walk the list of a head once and remember its entries; return False if the bound ended the walk."""
        whole = self._whole.get(head)
        if whole is None:
            budget = self._lists.budget
            walked = walk(self._memory.links, head, pointer_size=self._memory.pointer_size, bound=budget.per_ring)
            budget.spend(len(walked.entries))
            self._held.update(walked.entries)
            whole = self._whole[head] = walked.ending is not Ending.BOUND
        return whole

    def holds(self, entry: int) -> bool | None:
        """Tell whether the list of some thread holds a LIST_ENTRY, None if its head lies beyond the bound.

        The entry's own links may be stale: they are only used to find the head from which the list is walked.
        """
        # The entries before a break are on the list although their Flinks lead to no head.
        if entry in self._held or self._lists.has_met(entry):
            return True
        head = self._head_from(entry)
        if head == _NOWHERE:
            return False
        if head == _TOO_FAR:
            return None
        whole = self.follow(head)
        return True if entry in self._held else False if whole else None

    def _head_from(self, entry: int) -> int:
        """Follow the Flinks from an entry to the first list head, and remember that head for every entry on the way."""
        known, links, is_head = self._head_of, self._memory.links, self._lists.is_head
        bound = self._lists.budget.per_ring
        path: list[int] = []
        at = entry
        while True:
            head = known.get(at)
            if head is not None:
                break
            if path and is_head(at):
                head = at
                break
            if len(path) == bound:
                head = _TOO_FAR
                break
            following = None if at % self._memory.pointer_size else links(at)
            # An entry that leads back to one on this path leads to no head.
            known[at] = _NOWHERE
            path.append(at)
            if following is None:
                head = _NOWHERE
                break
            at = following[0]
        known.update(dict.fromkeys(path, head))
        self._lists.budget.spend(len(path))
        return head


class OffList:
    """Judges the scan's KAPCs thread by thread.

    `unmapped` has those that no kernel address maps, `undecided` those for which the list is too long to decide whether
    it holds them, by physical address; `left_out` has those beyond the number reported for one thread, by virtual
    address. They are sets, since a thread may be judged twice.
    """

    def __init__(self, kernel: Kernel, lists: ApcLists, found: dict[int, list[int]]) -> None:
        self._memory = kernel.memory
        self._layout = kernel.layout
        self._lists = lists
        self._found = found
        self._kernel_start = kernel.drivers.kernel_start
        self._held = HeldEntries(kernel, lists)
        self._pages: dict[int, int] | None = None
        self.unmapped: set[int] = set()
        self.undecided: set[int] = set()
        self.left_out: set[int] = set()

    @property
    def notes(self) -> tuple[str, ...]:
        """The KAPCs that have been left out so far, and why."""
        texts = (
            (self.unmapped, "APCs of the scan are left out: no kernel address maps them"),
            (self.undecided, "APCs of the scan were not judged: the lists that may hold them are too long"),
            (self.left_out, "further APCs of the scan that are on no list are not shown"),
        )
        return tuple(f"{len(found)} {text}" for found, text in texts if found)

    @property
    def threads(self) -> frozenset[int]:
        """The threads that KAPCs of the scan name, by virtual address."""
        return frozenset(self._found)

    def names(self, address: int) -> bool:
        """Tell whether a KAPC of the scan names the thread at a virtual address."""
        return address in self._found

    def find(self, thread: FoundThread, queues: tuple[Queue, ...]) -> Queue | None:
        """Return the KAPCs that say they are queued to a live thread and that no list holds, None without any.

        Args:
            thread: the thread.
            queues: its lists as they were read.
        """
        if thread.members.state == windows.TERMINATED:
            # A KAPC that was still queued when the thread ended stays in memory until the memory is used again.
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
                self.unmapped.add(physical)
                continue
            on_a_list = self._held.holds(address + self._layout.apc_list_entry)
            if on_a_list is None:
                self.undecided.add(physical)
            else:
                (held if on_a_list else loose).append(address)
        apcs = tuple(self._reported(self._without_copies(loose, held), thread)) if loose else ()
        return Queue(QueueName.OFF_LIST, 0, apcs, Ending.CLOSED, 0) if apcs else None

    def _without_copies(self, loose: list[int], held: list[int]) -> list[int]:
        """Leave out copies of KAPCs that are on a list, whatever links the copied page has, and copies of one another.

        Among KAPCs that are equal, links included, the original is the one whose links point to itself, else the first:
        so each unlinked KAPC is reported once.
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
        """Return the KAPC's offset in its page and its bytes without the links: what a copy of the page keeps."""
        content, links = self._content(address) or b"", self._layout.apc_list_entry
        return address % PAGE_SIZE, content[:links] + content[links + 2 * self._layout.pointer_size :]

    def _reported(self, addresses: list[int], thread: FoundThread) -> Iterator[Apc]:
        bound = self._lists.budget.per_list
        position = 0
        for address in addresses:
            apc = self._lists.read_apc(address, QueueName.OFF_LIST, position, thread=thread)
            if not apc.inserted or apc.kernel_routine is None or apc.kernel_routine.backing is Backing.USER:
                continue
            if position < bound:
                yield apc
                position += 1
            else:
                self.left_out.add(address)
        self._lists.budget.spend(position)

    def _address(self, physical: int, thread: FoundThread) -> int | None:
        """Return a kernel virtual address of the KAPC at a physical address, None if no kernel address maps it."""
        start = self._memory.physical(thread.address)
        if start is not None and 0 <= physical - start < self._layout.thread.size:
            address = thread.address + physical - start
            # The pages of an _ETHREAD need not follow one another in physical memory.
            if self._memory.physical(address) == physical:
                return address
        if self._pages is None:
            pages = (each for found in self._found.values() for each in found)
            self._pages = kernel_addresses(self._memory, pages, self._kernel_start)
        page = self._pages.get(physical & ~(PAGE_SIZE - 1))
        return None if page is None else page + physical % PAGE_SIZE
