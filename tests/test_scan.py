"""KAPCs that no list holds, KAPCs in places that are no pool, and the APC state of a second attach."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from volatility3.plugins.windows.apcaudit.image.page_tables import kernel_addresses
from volatility3.plugins.windows.apcaudit.model import QueueName

from apcaudit.synthetic.image import Image
from apcaudit.synthetic.scene import Apc, Process, Thread
from tests.views_image import Audits, Change, audited

KERNELS = pytest.mark.parametrize("kernel", ["xp-sp3-x86", "7-sp1-x64", "10-19041-x64", "10-19041-x86"])
SERVICE = Process("svc.exe", 100, (Thread(104, start=0x401000),))
OTHER = Process("other.exe", 200, (Thread(204, start=0x401000),))

LOOSE = Apc(linked=False, label="loose")


def _self_link_head(tid: int) -> Change:
    """Let the kernel list's head point to itself, its entries untouched, as the public exploits' APC does."""

    def change(image: Image) -> None:
        head = image.address_of[tid] + image.memory.offset("_ETHREAD", "Tcb.ApcState.ApcListHead[0]")
        image.memory.link(head, [])

    return change


def _off_list(found: Audits, tid: int) -> list[int]:
    queue = found.of[tid].thread.queue(QueueName.OFF_LIST)
    return [] if queue is None else [apc.address for apc in queue.apcs]


@KERNELS
def test_off_list(kernel: str, tmp_path: Path) -> None:
    """A KAPC that says Inserted and hangs on no list is found with --scan, in the pool and outside of it."""
    queued = (Apc("nt!IopDeallocateApc", label="first"), Apc("nt!IopDeallocateApc", label="second"))
    threads = (
        Thread(8, kernel_apcs=(LOOSE,)),
        Thread(12, kernel_apcs=queued),
        Thread(16, kernel_apcs=(Apc(linked=False, pool_tag=None, label="page"),)),
    )
    found = audited(kernel, tmp_path, threads, changes=(_self_link_head(12),), scan=True)
    at = found.image.address_of
    assert _off_list(found, 8) == [at["apc:loose"]]
    assert sorted(_off_list(found, 12)) == sorted([at["apc:first"], at["apc:second"]])
    assert _off_list(found, 16) == [at["apc:page"]]
    assert [found.codes(tid).get("off-list-apc") for tid in (8, 12, 16)] == ["high"] * 3
    listed = audited(kernel, tmp_path, threads, changes=(_self_link_head(12),))
    assert [listed.codes(tid) for tid in (8, 12, 16)] == [{}, {}, {}]


@KERNELS
def test_silent_neighbours(kernel: str, tmp_path: Path) -> None:
    """Queued and dequeued KAPCs, the thread's own that was never queued, and ended threads' are not off any list."""
    threads = (
        Thread(
            8, kernel_apc_disable=-1, kernel_apcs=(Apc("nt!IopDeallocateApc", normal_routine="nt!IopDeallocateApc"),)
        ),
        Thread(12, kernel_apcs=(Apc(linked=False, inserted=False),)),
        Thread(16),
        Thread(20, state="Terminated", terminated=True, in_thread_list=False, kernel_apcs=(LOOSE,)),
    )
    found = audited(kernel, tmp_path, threads, scan=True)
    assert [found.codes(tid) for tid in (8, 12, 16, 20)] == [{}] * 4
    assert [_off_list(found, tid) for tid in (8, 12, 16, 20)] == [[]] * 4


@KERNELS
def test_on_another_threads_list(kernel: str, tmp_path: Path) -> None:
    """A KAPC on the list of a thread that it does not name is on a list: a mismatch, and not off-list."""
    threads = (Thread(8), Thread(12, kernel_apc_disable=-1, kernel_apcs=(Apc(thread=8),)))
    found = audited(kernel, tmp_path, threads, scan=True)
    assert _off_list(found, 8) == []
    assert "thread-mismatch" in found.codes(12)


@KERNELS
def test_outside_of_the_pool(kernel: str, tmp_path: Path) -> None:
    """A queued KAPC on a kernel stack, the thread's own or another's, or in user space, is no pool's."""
    probe = audited(kernel, tmp_path, (Thread(8), Thread(12)))
    base = {tid: probe.of[tid].thread.members.stack_base for tid in (8, 12)}
    assert base[8]
    assert base[12]

    def queue(address: int) -> tuple[Apc, ...]:
        return (Apc(address=address, pool_tag=None),)

    threads = (
        Thread(8, stack_base=base[8], state="Running", running_on=0, kernel_apcs=queue(base[8] - 0x280)),
        Thread(12, stack_base=base[12]),
        Thread(16, state="Running", running_on=1, kernel_apcs=queue(base[12] - 0x280)),
        Thread(20, state="Running", running_on=2, kernel_apcs=queue(0x00300040)),
        Thread(24, state="Running", running_on=3, kernel_apcs=(Apc(pool_tag=None),)),
    )
    found = audited(kernel, tmp_path, threads, processors=4)
    codes = {tid: found.codes(tid).get("apc-outside-pool") for tid in (8, 16, 20, 24)}
    assert codes == {8: "high", 16: "high", 20: "high", 24: None}


@KERNELS
def test_every_page_has_its_address(kernel: str, tmp_path: Path) -> None:
    """The page tables give the kernel address of a physical page; one that nothing maps has none."""
    found = audited(kernel, tmp_path, (Thread(8),))
    memory, start = found.audit.kernel.memory, found.audit.kernel.drivers.kernel_start
    thread, module = found.image.address_of[8], found.image.kernel.base
    wanted = {memory.physical(address & ~0xFFF): address & ~0xFFF for address in (thread, module)}
    assert kernel_addresses(memory, [page for page in wanted if page is not None], start) == wanted
    assert kernel_addresses(memory, [0x7FFFF000], start) == {}


def _nest(queued: bool) -> Change:
    """Put the APC state of a first attach on the stack of a thread that attached a second time, with one APC."""

    def change(image: Image) -> None:
        memory = image.memory
        process = image.address_of["process:other.exe"]
        state = image.resolve("nested")
        size = memory.pointer_size
        for index in range(2):
            head = state + memory.offset("_KAPC_STATE", f"ApcListHead[{index}]")
            entries = [image.address_of["apc:middle"] + memory.offset("_KAPC", "ApcListEntry")]
            memory.link(head, entries if queued and not index else [])
        image.write(state + memory.offset("_KAPC_STATE", "Process"), struct.pack("<Q", process)[:size])

    return change


@KERNELS
@pytest.mark.parametrize("queued", [True, False])
def test_nested_attach(kernel: str, queued: bool, tmp_path: Path) -> None:
    """The APCs of the state between two attaches are found on the stack, and are judged as what they are."""
    probe = audited(kernel, tmp_path, (Thread(8),))
    base = probe.of[8].thread.members.stack_base
    assert base
    middle = Apc("nt!IopDeallocateApc", linked=False, environment=1, label="middle")

    def place(image: Image) -> None:
        image.address_of["nested"] = base - 0x280

    thread = Thread(8, stack_base=base, attached_to="svc.exe", kernel_apcs=(middle,))
    found = audited(kernel, tmp_path, (thread,), others=(SERVICE, OTHER), changes=(place, _nest(queued)), scan=True)
    audited_thread = found.of[8].thread
    assert "other.exe (200)" in (audited_thread.nested_attach or "")
    nested = [apc for queue in audited_thread.queues if queue.name is QueueName.SAVED_KERNEL for apc in queue.apcs]
    assert [apc.address for apc in nested] == ([found.image.address_of["apc:middle"]] if queued else [])
    assert "environment-mismatch" not in found.codes(8)
    # The scan finds the KAPC too: it is on the list of the state on the stack, or on none.
    assert ("off-list-apc" in found.codes(8)) == (not queued)


@KERNELS
def test_nested_attach_of_a_running_thread(kernel: str, tmp_path: Path) -> None:
    """KernelStack of a running thread is stale: all of its stack is searched, and what is found may be left over."""
    probe = audited(kernel, tmp_path, (Thread(8),))
    base = probe.of[8].thread.members.stack_base
    assert base
    middle = Apc("nt!IopDeallocateApc", linked=False, environment=1, label="middle")

    def place(image: Image) -> None:
        # Below where the thread last waited.
        image.address_of["nested"] = base - 0x600

    thread = Thread(8, stack_base=base, state="Running", running_on=0, attached_to="svc.exe", kernel_apcs=(middle,))
    found = audited(kernel, tmp_path, (thread,), others=(SERVICE, OTHER), changes=(place, _nest(queued=False)))
    assert "other.exe (200)?" in (found.of[8].thread.nested_attach or "")


@pytest.mark.parametrize("kernel", ["7-sp1-x64", "8.1-x64", "10-19041-x64", "11-26100-x64"])
def test_nested_attach_on_the_stack_before(kernel: str, tmp_path: Path) -> None:
    """A state on the stack that a callout grew out of is found there: _KSTACK_CONTROL at InitialStack leads to it."""
    probe = audited(kernel, tmp_path, (Thread(8), Thread(12)))
    bases = {tid: probe.of[tid].thread.members.stack_base for tid in (8, 12)}
    assert bases[8]
    assert bases[12]
    middle = Apc("nt!IopDeallocateApc", linked=False, environment=1, label="middle")

    def grow(image: Image) -> None:
        memory, body = image.memory, image.address_of[8]
        new = memory.layout.has_type("_KSTACK_CONTROL")
        control, own = ("_KSTACK_CONTROL", "StackBase") if new else ("_KERNEL_STACK_CONTROL", "Current.StackBase")
        start = bases[8] - 0x100
        memory.write(body, "_ETHREAD", "Tcb.InitialStack", start)
        memory.write(start, control, own, bases[8])
        memory.write(start, control, "Previous.StackBase", bases[12])
        memory.write(start, control, "Previous.StackLimit", (bases[12] or 0) - 0x6000)
        image.address_of["nested"] = (bases[12] or 0) - 0x280

    threads = (
        Thread(8, stack_base=bases[8], attached_to="svc.exe", kernel_apcs=(middle,)),
        Thread(12, stack_base=bases[12]),
    )
    found = audited(kernel, tmp_path, threads, others=(SERVICE, OTHER), changes=(grow, _nest(queued=True)))
    assert "other.exe (200)" in (found.of[8].thread.nested_attach or "")
    nested = [apc.address for queue in found.of[8].thread.queues for apc in queue.apcs]
    assert nested == [found.image.address_of["apc:middle"]]


@KERNELS
def test_single_attach(kernel: str, tmp_path: Path) -> None:
    """A thread that attached once has no third state; a stack that is not in the image is said not to be examined."""
    threads = (Thread(8, attached_to="svc.exe"), Thread(12, attached_to="svc.exe", stack_pages=0))
    found = audited(kernel, tmp_path, threads, others=(SERVICE,))
    assert found.of[8].thread.nested_attach == "none on its kernel stack"
    assert "not examined" in (found.of[12].thread.nested_attach or "")
    assert found.codes(8) == found.codes(12) == {}
