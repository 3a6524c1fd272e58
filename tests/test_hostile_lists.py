"""Lists and tables made to wear the audit out: it reads each entry and page once, and says what it left."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from volatility3.plugins.windows.apcaudit.formats.lists import ENTRY_BOUND, TOTAL_BOUND
from volatility3.plugins.windows.apcaudit.image import Memory
from volatility3.plugins.windows.apcaudit.model import Ending, QueueName
from volatility3.plugins.windows.apcaudit.queues.apc_lists import ApcLists
from volatility3.plugins.windows.apcaudit.queues.off_list import OffList
from volatility3.plugins.windows.apcaudit.queues.placement import PlacementFinder
from volatility3.plugins.windows.apcaudit.threads.kernel_views import read_cid_table
from volatility3.plugins.windows.apcaudit.windows import PAGE_SIZE

from apcaudit.synthetic import adversaries, damage
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.scene import Apc, Process, Thread
from tests.views_image import Audits, Change, audited

KERNELS = pytest.mark.parametrize("kernel", ["xp-sp3-x86", "10-19041-x64"])

ONE, CALM = 0x400, 0x404
RUNNING = {"state": "Running", "wait_reason": "Executive", "kernel_apc_pending": True}
#: The garbage beside them has a copy of the first thread's page, with its KAPC as it was before it was unlinked.
COPIES = 1
#: A KAPC of a driver's own: nothing but the number of them is wrong.
OWN = Apc("fltMgr!FltSendMessage")


class CountingMemory(Memory):
    """Memory that counts how often each virtual address is read."""

    def __init__(self, context: Any, layer_name: str) -> None:
        super().__init__(context, layer_name)
        self.reads: Counter[int] = Counter()

    def read(self, address: int, length: int) -> bytes | None:
        """Read as Memory does."""
        self.reads[address] += 1
        return super().read(address, length)


def counting(found: Audits) -> CountingMemory:
    """Open the image of an audit again."""
    context, module = found.source
    return CountingMemory(context, context.modules[module].layer_name)


def one_page_table(image: Image) -> None:
    """Let PspCidTable have three levels, every page of which is one page: the same leaf 65,536 times and more."""
    memory = image.memory
    table = memory.read_pointer(image.kernel.address("PspCidTable"))
    leaf = memory.read(table, "_HANDLE_TABLE", "TableCode") & ~7
    middle, top = image.pool.take_pages(PAGE_SIZE), image.pool.take_pages(PAGE_SIZE)
    for at in range(0, PAGE_SIZE, memory.pointer_size):
        memory.write_pointer(middle + at, leaf)
        memory.write_pointer(top + at, middle)
    memory.write(table, "_HANDLE_TABLE", "TableCode", top | 2)


@KERNELS
def test_a_cid_table_of_one_page(kernel: str, tmp_path: Path) -> None:
    """A page that the table has many times is read once and believed once; the table is told to be damaged."""
    found = audited(kernel, tmp_path, (Thread(8), Thread(12)), changes=(one_page_table,))
    assert {tid for tid in found.of if tid} == {8, 12}
    assert found.codes(8) == found.codes(12) == {}
    assert any("PspCidTable was not read whole" in note for note in found.audit.notes)
    memory = counting(found)
    table = read_cid_table(replace(found.audit.kernel, memory=memory))
    assert not table.complete
    assert table.objects.get(8) == found.image.address_of[8]
    pages = {address: reads for address, reads in memory.reads.items() if not address % PAGE_SIZE}
    assert max(pages.values()) == 1
    assert table.objects.ids <= PAGE_SIZE


def ring_of(count: int) -> Change:
    """Queue so many KAPCs to one thread: copies of its first one, in pool of their own, on an intact list."""

    def change(image: Image) -> None:
        memory = image.memory
        entry, size = memory.offset("_KAPC", "ApcListEntry"), memory.size("_KAPC")
        first = damage.links(image, ONE)[0]
        content = image.read(first - entry, size)
        stride = -(-size // image.pool.alignment) * image.pool.alignment
        at = image.pool.take_pages(count * stride)
        entries = [first]
        for number in range(count - 1):
            image.write(at + number * stride, content)
            entries.append(at + number * stride + entry)
        memory.link(damage.head(image, ONE), entries)

    return change


def unlinked(image: Image) -> None:
    """Let every KAPC on the thread's list, and its head, point to itself."""
    for entry in (damage.head(image, ONE), *damage.links(image, ONE)):
        image.memory.link(entry, [])


@KERNELS
def test_a_ring_of_kapcs_is_walked_once(kernel: str, tmp_path: Path) -> None:
    """Of a list far beyond the bound every entry is followed once, and none of them is off the list."""
    many = 5 * ENTRY_BOUND
    threads = (Thread(ONE, kernel_apcs=(OWN,), **RUNNING), Thread(CALM, kernel_apcs=(Apc(linked=False),)))
    found = audited(kernel, tmp_path, threads, changes=(ring_of(many),), scan=True)
    queue = found.of[ONE].thread.queues[0]
    assert (len(queue.apcs), queue.ending) == (ENTRY_BOUND, Ending.BOUND)
    assert found.of[ONE].thread.queue(QueueName.OFF_LIST) is None
    assert found.codes(ONE) == {"list-truncated": "medium"}
    assert found.codes(CALM) == {"off-list-apc": "high"}
    assert found.audit.notes == ()
    # The entries that are reported, all of the list to tell what hangs on it, and what leads to no list or is a copy.
    assert TOTAL_BOUND - found.audit.lists.budget.left <= ENTRY_BOUND + many + 4


@KERNELS
def test_a_ring_without_its_head_is_walked_once(kernel: str, tmp_path: Path) -> None:
    """KAPCs that lead to each other and to no list are followed once, not once for each of them."""
    many = 3 * ENTRY_BOUND

    def without_head(image: Image) -> None:
        entries = damage.links(image, ONE)
        image.memory.link(entries[0], entries[1:])
        image.memory.link(damage.head(image, ONE), [])

    changes = (ring_of(many), without_head)
    found = audited(kernel, tmp_path, (Thread(ONE, kernel_apcs=(OWN,), **RUNNING),), changes=changes, scan=True)
    queue = found.of[ONE].thread.queue(QueueName.OFF_LIST)
    assert queue is not None
    assert len(queue.apcs) == ENTRY_BOUND
    assert found.codes(ONE)["off-list-apc"] == "high"
    left_out = many - ENTRY_BOUND + COPIES
    assert found.audit.notes == (f"{left_out} further APCs of the scan that are on no list are not shown",)
    # Each of them is followed once, and as many are reported as a list may have.
    assert TOTAL_BOUND - found.audit.lists.budget.left == many + COPIES + ENTRY_BOUND


@KERNELS
def test_kapcs_that_are_on_no_list_are_bounded(kernel: str, tmp_path: Path) -> None:
    """Of KAPCs that were unlinked one by one as many are reported as a list may have, and a note has the rest."""
    many = ENTRY_BOUND + 100
    changes = (ring_of(many), unlinked)
    found = audited(kernel, tmp_path, (Thread(ONE, kernel_apcs=(OWN,), **RUNNING),), changes=changes, scan=True)
    queue = found.of[ONE].thread.queue(QueueName.OFF_LIST)
    assert queue is not None
    assert len(queue.apcs) == ENTRY_BOUND
    assert found.audit.notes == (f"{100 + COPIES} further APCs of the scan that are on no list are not shown",)


@KERNELS
def test_a_spent_budget_is_told(kernel: str, tmp_path: Path) -> None:
    """KAPCs of a list that there is no budget left to follow are not off it: a note says that they may hang there."""
    many = 2 * ENTRY_BOUND
    threads = (Thread(ONE, kernel_apcs=(OWN,), **RUNNING),)
    whole = audited(kernel, tmp_path, threads, changes=(ring_of(many),), scan=True)
    audit = whole.audit
    lists = ApcLists(audit.kernel, PlacementFinder(audit.kernel, list), total=1000)
    thread = whole.of[ONE].thread
    offset = whole.image.memory.offset("_KAPC", "ApcListEntry")
    planted = [audit.kernel.memory.physical(entry - offset) for entry in damage.links(whole.image, ONE)]
    found = {thread.address: [each for each in planted if each is not None]}
    off_list = OffList(audit.kernel, lists, found)
    queues = lists.read(thread)
    assert [(len(queue.apcs), queue.ending) for queue in queues] == [(1000, Ending.BOUND)]
    # A thread may be judged twice; its KAPCs are counted once.
    assert [off_list.find(thread, queues) for _ in range(2)] == [None, None]
    note = "APCs of the scan were not judged: the lists that may hold them are too long"
    assert off_list.notes == (f"{many - 1000} {note}",)


@KERNELS
def test_one_loop_of_many_threads(kernel: str, tmp_path: Path) -> None:
    """A loop that many lists lead into is read once, on one of them; on every other it is one entry, and told."""
    many, length = 40, 100
    sharing = range(ONE, ONE + 4 * many, 4)
    calm = sharing.stop
    threads = (*(Thread(tid, kernel_apcs=(OWN,), **RUNNING) for tid in sharing), Thread(calm))
    loop = adversaries.one_loop
    found = audited(kernel, tmp_path, threads, changes=(lambda image: loop(image, sharing, length),))
    lengths = [len(queue.apcs) for tid in sharing for queue in found.of[tid].thread.queues]
    assert lengths == [length, *(1 for _ in sharing[1:])]
    assert TOTAL_BOUND - found.audit.lists.budget.left <= length + many
    assert found.codes(ONE) == {"list-cycle": "high", "duplicate-apc": "high"}
    # The copies are of the first thread's KAPC and name it.
    told = {"list-broken": "high", "duplicate-apc": "high", "thread-mismatch": "high"}
    assert [found.codes(tid) for tid in sharing[1:]] == [told for _ in sharing[1:]]
    assert found.codes(calm) == {}
    assert found.audit.notes == ()


@KERNELS
def test_processes_that_overlap(kernel: str, tmp_path: Path) -> None:
    """Of processes in one another's memory those apart are read, a note has the others, and real ones keep threads."""
    apart, named = 12, 8
    others = (Process("svchost.exe", 800, (Thread(804, start=0x401000, wait_reason="UserRequest"),)),)
    left_out = []

    def overlap(image: Image) -> None:
        each = -(-image.memory.size("_EPROCESS") // (2 * image.memory.pointer_size))
        adversaries.overlapping_processes(image, apart * each)
        left_out.append(apart * (each - 1))

    found = audited(
        kernel, tmp_path, (Thread(ONE, kernel_apcs=(OWN,), **RUNNING), Thread(CALM)), others=others, changes=(overlap,)
    )
    # A process that is none may lead to one thread that is none.
    assert len({tid for tid in found.of if tid} - {ONE, CALM, 804}) <= apart
    assert [found.views(tid) for tid in (ONE, CALM, 804)] == ["cid+list"] * 3
    assert [found.codes(tid) for tid in (ONE, CALM, 804)] == [{}, {}, {}]
    notes = found.audit.notes
    assert f"{left_out[0]} processes of PsActiveProcessHead are left out: they lie in others' memory" in notes
    # The lists of those apart lead nowhere: some are named, of the rest it is said how many there are.
    assert (
        f"the thread list of {apart - named} more processes does not close: it is read from its other end too" in notes
    )


@KERNELS
def test_a_broken_list_holds_what_comes_before(kernel: str, tmp_path: Path) -> None:
    """A KAPC that another thread's list leads to is not off every list, though that list breaks off behind it."""

    def lead_on(image: Image) -> None:
        memory = image.memory
        entry = damage.links(image, ONE)[0]
        memory.write(entry - memory.offset("_KAPC", "ApcListEntry"), "_KAPC", "Thread", image.address_of[CALM])
        damage.point_flink_to_unmapped(image, ONE)

    threads = (Thread(ONE, kernel_apcs=(OWN,), **RUNNING), Thread(CALM))
    found = audited(kernel, tmp_path, threads, changes=(lead_on,), scan=True)
    assert found.codes(ONE) == {"thread-mismatch": "high", "list-broken": "high"}
    assert found.codes(CALM) == {}


@KERNELS
def test_a_list_that_another_leads_into_is_read_whole(kernel: str, tmp_path: Path) -> None:
    """A list that is intact stays so, whatever leads into it before and whatever thread its KAPCs name."""
    two = CALM + 4

    def lead_on(image: Image) -> None:
        memory = image.memory
        shared = damage.links(image, two)
        memory.write(shared[0] - memory.offset("_KAPC", "ApcListEntry"), "_KAPC", "Thread", image.address_of[CALM])
        memory.write_pointer(damage.links(image, ONE)[-1], shared[0])

    threads = (Thread(ONE, kernel_apcs=(OWN,), **RUNNING), Thread(CALM), Thread(two, kernel_apcs=(OWN,) * 3, **RUNNING))
    found = audited(kernel, tmp_path, threads, changes=(lead_on,))
    (queue,) = found.of[two].thread.queues
    assert (len(queue.apcs), queue.ending) == (3, Ending.CLOSED)
    assert found.codes(two) == {"duplicate-apc": "high", "thread-mismatch": "high"}
    assert "list-broken" in found.codes(ONE)
    assert found.codes(CALM) == {}
