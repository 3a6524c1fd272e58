"""Adversaries by name: each is planted in a machine, and what has to be reported of it comes out."""

from __future__ import annotations

from pathlib import Path

import pytest
from volatility3.plugins.windows.apcaudit.findings import Finding
from volatility3.plugins.windows.apcaudit.model import Ending
from volatility3.plugins.windows.apcaudit.queues.apc_lists import ApcLists
from volatility3.plugins.windows.apcaudit.queues.placement import PlacementFinder

from apcaudit.synthetic import adversaries, damage
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.scene import Apc, Driver, IoStackLocation, Irp, Process, Thread
from apcaudit.synthetic.scenes.common import DISK, FLTMGR, HAL
from tests.views_image import Audits, Change, audited

KERNELS = pytest.mark.parametrize("kernel", ["xp-sp3-x86", "10-19041-x64"])

ONE, TWO, GHOST, CALM = 0x400, 0x404, 0x408, 0x40C
RUNNING = {"state": "Running", "wait_reason": "Executive", "kernel_apc_pending": True}
#: A KAPC of a driver's own: nothing but the adversary is wrong with it.
OWN = Apc("fltMgr!FltSendMessage", label=None)
SERVICE = Process("svchost.exe", 800, (Thread(804, start=0x401000, wait_reason="UserRequest"),))
HIDDEN = Driver("Ghost.sys", listed=False, driver_object=False)


def audit(kernel: str, folder: Path, *changes: Change, first: tuple[Apc, ...] = (OWN,), **more: object) -> Audits:
    """Audit a machine with two threads that have kernel APCs, one that starts in a hidden driver, and a calm one."""
    threads = (
        Thread(ONE, kernel_apcs=first, **RUNNING),
        Thread(TWO, kernel_apcs=(OWN,), **RUNNING),
        Thread(GHOST, start="Ghost+0x1100"),
        Thread(CALM),
    )
    drivers = (HAL, FLTMGR, DISK, HIDDEN)
    return audited(kernel, folder, threads, others=(SERVICE,), changes=changes, drivers=drivers, **more)


def _of_apcs(found: Audits, tid: int) -> list[Finding]:
    return [finding for each in found.of[tid].apcs.values() for finding in each.findings]


def free(kernel: str) -> int:
    """Give a kernel address that nothing uses."""
    return 0xFFFFAB8480000000 if load_kernel(kernel).is_64bit else 0x8F000000


@KERNELS
def test_two_lists_cross_linked(kernel: str, tmp_path: Path) -> None:
    """A KAPC on the lists of two threads is told on both, and the list that leads into the other as broken."""
    found = audit(kernel, tmp_path, lambda image: damage.cross_link(image, ONE, TWO))
    assert found.codes(ONE)["duplicate-apc"] == "high"
    assert found.codes(TWO)["duplicate-apc"] == "high"
    assert "list-broken" in found.codes(ONE)
    (finding,) = [each for each in _of_apcs(found, ONE) if each.code == "duplicate-apc"]
    assert f"the kernel list of thread {found.of[TWO].thread.address:#x} (TID {TWO})" in finding.explanation
    assert found.codes(CALM) == {}


@KERNELS
def test_endless_list(kernel: str, tmp_path: Path) -> None:
    """A list of valid-looking KAPCs without end is followed to the bound, and told to go on."""
    found = audit(kernel, tmp_path, lambda image: adversaries.endless_list(image, ONE, free(kernel)))
    assert found.codes(ONE)["list-truncated"] == "medium"
    assert len(found.of[ONE].thread.queues[0].apcs) == 4096
    assert "list-truncated" not in found.codes(TWO)


@KERNELS
def test_endless_lists_of_many_threads(kernel: str, tmp_path: Path) -> None:
    """What all lists of an image have together is bounded too: beyond it each list is followed for a few entries."""

    def lists_without_end(image: Image) -> None:
        for index, tid in enumerate((ONE, TWO)):
            adversaries.endless_list(image, tid, free(kernel) + index * 0x1000000)

    found = audit(kernel, tmp_path, lists_without_end)
    lists = ApcLists(found.audit.kernel, PlacementFinder(found.audit.kernel, list), total=100)
    read = [lists.read(found.of[tid].thread)[0] for tid in (ONE, TWO)]
    assert [len(queue.apcs) for queue in read] == [100, 16]
    assert {queue.ending for queue in read} == {Ending.BOUND}


@KERNELS
def test_a_kapc_inside_another(kernel: str, tmp_path: Path) -> None:
    """A list entry within another KAPC is a KAPC that is none."""
    found = audit(kernel, tmp_path, lambda image: adversaries.inside_another(image, ONE))
    assert "bad-object" in found.codes(ONE)


@KERNELS
@pytest.mark.parametrize("address", [0x7FF10000, 0x100], ids=["user memory", "the zero page"])
def test_an_entry_in_user_space(kernel: str, address: int, tmp_path: Path) -> None:
    """A KAPC in user memory, or in the zero page, is told to lie there."""
    found = audit(kernel, tmp_path, lambda image: adversaries.entry_at(image, ONE, address))
    assert found.codes(ONE)["apc-outside-pool"] == "high"


@KERNELS
def test_an_entry_on_another_threads_stack(kernel: str, tmp_path: Path) -> None:
    """A KAPC on another thread's kernel stack is told to lie there."""

    def move(image: Image) -> None:
        base = image.memory.read(image.address_of[TWO], "_ETHREAD", "Tcb.StackBase")
        adversaries.entry_at(image, ONE, base - 0x300)

    found = audit(kernel, tmp_path, move)
    assert found.codes(ONE)["apc-outside-pool"] == "high"


@KERNELS
def test_a_thread_claims_another_process(kernel: str, tmp_path: Path) -> None:
    """A thread of System that says it is svchost's hangs on a list that is not its process's."""
    found = audit(kernel, tmp_path, lambda image: adversaries.claim_process(image, CALM, "svchost.exe"))
    assert found.codes(CALM) == {"hidden-thread": "high"}
    assert any("does not close" in note for note in found.audit.notes)


@KERNELS
def test_a_thread_claims_no_process(kernel: str, tmp_path: Path) -> None:
    """A thread whose every process member is the same wrong address contradicts the list that it is on."""

    def claim(image: Image) -> None:
        for path in ("Tcb.Process", "ThreadsProcess", "Tcb.ApcState.Process"):
            image.memory.write(image.address_of[CALM], "_ETHREAD", path, image.kernel.base, optional=True)

    assert audit(kernel, tmp_path, claim).codes(CALM) == {"state-mismatch": "medium"}


@KERNELS
def test_a_process_list_that_skips(kernel: str, tmp_path: Path) -> None:
    """The threads of a process that was unlinked are found, and it is called hidden."""
    found = audit(kernel, tmp_path, lambda image: adversaries.skip_process(image, "svchost.exe"))
    assert found.codes(804)["hidden-process"] == "high"


@KERNELS
def test_a_list_tied_into_another_process(kernel: str, tmp_path: Path) -> None:
    """A thread list that leads into another process's is not followed there: its threads stay that process's."""

    def tie(image: Image) -> None:
        offset = image.memory.offset("_ETHREAD", "ThreadListEntry")
        image.memory.write_pointer(image.address_of[ONE] + offset, image.address_of[804] + offset)

    found = audit(kernel, tmp_path, tie)
    assert found.of[804].thread.owner is not None
    assert found.of[804].thread.owner.name == "svchost.exe"
    assert any("thread list of System (4) does not close" in note for note in found.audit.notes)
    assert {ONE, TWO, GHOST, CALM} <= set(found.of)


@KERNELS
@pytest.mark.parametrize(
    ("wide", "codes"), [("over nt", ("orphan-start", "routine-unbacked")), ("over everything", ("module-conflict",))]
)
def test_a_module_entry_that_covers_others(kernel: str, wide: str, codes: tuple[str, ...], tmp_path: Path) -> None:
    """An entry that spans what is not its image makes no hidden driver's thread or APC look backed, and is told."""

    def claim(image: Image) -> None:
        base = image.address_of["driver:Ghost.sys"] - 0x100000
        size = 0x8000000
        if wide == "over nt":
            base, size = image.kernel.base - 0x1000, image.kernel.image_size + 0x2000
        adversaries.claim_range(image, "disk.sys", base, size)

    found = audit(kernel, tmp_path, claim, first=(Apc("Ghost+0x1200"),))
    assert found.codes(GHOST) == {codes[0]: "high"}
    assert found.codes(ONE) == {codes[-1]: "high"}
    assert found.codes(TWO) == {}
    assert any("disk" in note for note in found.audit.notes)


@KERNELS
def test_exports_that_point_everywhere(kernel: str, tmp_path: Path) -> None:
    """An export table that points everywhere names nothing, and its driver still backs its routines."""
    found = audit(kernel, tmp_path, lambda image: adversaries.scatter_exports(image, "fltMgr.sys"))
    apc = found.of[ONE].thread.queues[0].apcs[0]
    assert apc.kernel_routine is not None
    assert apc.kernel_routine.module == "fltMgr"
    assert found.codes(ONE) == {}
    assert any("claimed by fltMgr" in note for note in found.audit.notes)


@KERNELS
def test_an_irp_that_runs_off_its_page(kernel: str, tmp_path: Path) -> None:
    """An IRP that claims 127 stack locations is doubted, and read no further than it can be."""
    irp = Irp(stack=(IoStackLocation("disk.sys", major=0xE),))
    first = (Apc("nt!IopCompleteRequest", irp=irp, label="long"),)
    found = audit(kernel, tmp_path, lambda image: adversaries.endless_irp(image, "long"), first=first)
    audited_thread = found.of[ONE]
    origin = audited_thread.get(audited_thread.thread.queues[0].apcs[0]).origin
    assert origin is not None
    assert "?" in origin.text
    assert "Size is" in origin.text


@KERNELS
@pytest.mark.parametrize(
    ("offset", "code"), [(-1, "routine-not-code"), (0, "orphan-start")], ids=["last byte", "behind it"]
)
def test_a_start_address_at_the_end(kernel: str, offset: int, code: str, tmp_path: Path) -> None:
    """A start at a module's last byte lies in its data, the one behind it in nothing; reading the code there ends."""

    def move(image: Image) -> None:
        end = image.address_of["driver:fltMgr.sys"] + FLTMGR.size
        image.memory.write(image.address_of[CALM], "_ETHREAD", "StartAddress", end + offset)

    assert set(audit(kernel, tmp_path, move).codes(CALM)) == {code}


@KERNELS
@pytest.mark.parametrize("value", [0x1000, -0x1000, 0x7FF10000], ids=["low", "high", "user"])
def test_a_cid_table_that_lies(kernel: str, value: int, tmp_path: Path) -> None:
    """Entries that name no thread make none, and none of the threads is lost or blamed."""
    found = audit(kernel, tmp_path, lambda image: adversaries.fill_cid_table(image, value))
    assert {ONE, TWO, GHOST, CALM, 804} <= set(found.of)
    assert found.codes(CALM) == {}
    assert len(found.of) < 12


def _suspension(image: Image) -> str:
    """Give the KAPC that suspends a thread: SchedulerApc since 8 (public PDBs)."""
    return f"Tcb.{'SchedulerApc' if image.memory.has('_KTHREAD', 'SchedulerApc') else 'SuspendApc'}"


def _system_elsewhere(image: Image) -> None:
    symbol = image.kernel.address("PsInitialSystemProcess")
    image.memory.write_pointer(symbol, symbol)


def _first_thread_gone(image: Image) -> None:
    memory = image.memory
    head = image.address_of["process:System"] + memory.offset("_EPROCESS", "ThreadListHead")
    memory.write_pointer(head, free(image.kernel.name))


@KERNELS
@pytest.mark.parametrize("blind", [_system_elsewhere, _first_thread_gone])
def test_what_threads_hold_is_known_from_others(kernel: str, blind: Change, tmp_path: Path) -> None:
    """That System's variable or the begin of its list is damaged spares no thread whose own KAPC is altered."""

    def alter(image: Image) -> None:
        image.memory.write(image.address_of[CALM], "_ETHREAD", f"{_suspension(image)}.Size", 1)

    found = audit(kernel, tmp_path, blind, alter)
    assert found.codes(CALM) == {"embedded-apc-altered": "high"}
    assert not any("not checked" in note for note in found.audit.notes)


@KERNELS
def test_no_thread_of_system_has_its_kapc(kernel: str, tmp_path: Path) -> None:
    """Where no thread of System has the KAPC that suspends it, a note says that none is checked."""

    def clear(image: Image) -> None:
        for tid in (ONE, TWO, GHOST, CALM):
            image.memory.write(image.address_of[tid], "_ETHREAD", f"{_suspension(image)}.Type", 0)

    assert "KAPCs that are members of threads are not checked: no thread of System that can be read has one" in (
        audit(kernel, tmp_path, clear).audit.notes
    )
