"""Every view of the threads, on images built for the purpose: who is found by which, and who is hidden."""

from __future__ import annotations

from pathlib import Path

import pytest

from apcaudit.synthetic.image import Image
from apcaudit.synthetic.kernels import OWN
from apcaudit.synthetic.scene import Apc, Bugcheck, Process, Thread
from tests.views_image import Audits, Change, audited

KERNELS = pytest.mark.parametrize("kernel", ["xp-sp3-x86", "7-sp1-x64", "10-19041-x64", "10-19041-x86"])


def _lose(name: str) -> Change:
    """Clear a pointer of the kernel's, so that what it leads to cannot be read."""

    def change(image: Image) -> None:
        image.memory.write_pointer(image.kernel.address(name), 0)

    return change


def _mark(tid: int, path: str, value: int) -> Change:
    def change(image: Image) -> None:
        image.memory.write(image.address_of[tid], "_ETHREAD", path, value)

    return change


def _no_tag(tid: int) -> Change:
    """Overwrite everything in front of a thread's body that names it: pool header and object header."""

    def change(image: Image) -> None:
        start = image.address_of[tid] - 0x40
        image.write(start, bytes(0x40))

    return change


def _skip(tid: int) -> Change:
    """Unlink a thread from its process's list as DKOM does: the neighbours are joined, its own links stay."""

    def change(image: Image) -> None:
        memory = image.memory
        entry = image.address_of[tid] + memory.offset("_ETHREAD", "ThreadListEntry")
        size = memory.pointer_size
        flink, blink = memory.read_pointer(entry), memory.read_pointer(entry + size)
        memory.write_pointer(blink, flink)
        memory.write_pointer(flink + size, blink)

    return change


def _crowd(kernel: str, folder: Path, *, scan: bool) -> Audits:
    return audited(
        kernel,
        folder,
        (
            Thread(8),
            Thread(12, in_thread_list=False),
            Thread(16, in_thread_list=False, in_cid_table=False),
            Thread(20, in_thread_list=False, in_cid_table=False, state="Running", running_on=0),
            Thread(24),
            Thread(28, in_thread_list=False, in_cid_table=False),
            Thread(32, in_thread_list=False, in_cid_table=False, state="Terminated", terminated=True),
            Thread(36, in_cid_table=False),
            Thread(40, in_thread_list=False, state="Initialized"),
        ),
        changes=(_skip(24), _no_tag(28)),
        scan=scan,
        processors=2,
    )


@pytest.fixture(scope="module", params=sorted(OWN))
def listed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Audits:
    """The crowd as it is without --scan, on every kernel."""
    return _crowd(request.param, tmp_path_factory.mktemp("listed"), scan=False)


@pytest.fixture(scope="module", params=sorted(OWN))
def scanned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Audits:
    """The crowd as --scan shows it, on every kernel."""
    return _crowd(request.param, tmp_path_factory.mktemp("scanned"), scan=True)


def test_views_without_scan(listed: Audits) -> None:
    """The CID table and the processors show what the process lists do not, and name each other."""
    found = listed
    assert {tid: found.views(tid) for tid in (8, 12, 20, 24, 36)} == {
        8: "cid+list",
        12: "cid",
        20: "cpu",
        24: "cid",
        36: "list",
    }
    assert 16 not in found.of
    assert 28 not in found.of
    assert {tid: found.codes(tid) for tid in (8, 12, 20, 24, 36, 40)} == {
        8: {},
        12: {"hidden-thread": "high"},
        20: {"hidden-thread": "high"},
        24: {"hidden-thread": "high"},
        36: {"hidden-thread": "high"},
        40: {},
    }


def test_views_with_scan(scanned: Audits) -> None:
    """The scan shows what no other view holds, without its pool tag too; an ended thread's memory is no finding."""
    found = scanned
    assert {tid: found.views(tid) for tid in (8, 12, 16, 20, 28)} == {
        8: "cid+list+scan",
        12: "cid+scan",
        16: "scan",
        20: "cpu+scan",
        28: "scan",
    }
    assert {tid: found.codes(tid) for tid in (16, 28, 32)} == {
        16: {"hidden-thread": "high"},
        28: {"hidden-thread": "high"},
        32: {},
    }
    assert found.audit.notes == ()


def test_unlinked_thread_is_told_from_damage(listed: Audits) -> None:
    """A thread whose neighbours link past it was unlinked; one that points to itself was closed or never linked."""
    assert "link past it: it was unlinked" in listed.explanation(24, "hidden-thread")
    assert "points to itself" in listed.explanation(12, "hidden-thread")


def test_running_thread_names_its_processor(listed: Audits) -> None:
    """A processor's CurrentThread carries the processor's number; idle threads are idle and no finding."""
    assert listed.of[20].thread.processor == 0
    idle = [each for each in listed.of.values() if each.thread.members.pid == 0]
    assert idle
    assert all(each.thread.idle and not each.findings for each in idle)


@KERNELS
def test_hidden_process_is_audited(kernel: str, tmp_path: Path) -> None:
    """The threads of a process that PsActiveProcessHead does not hold are audited, and it is a finding."""
    ghost = Process(
        "ghost.exe", 600, (Thread(604, start=0x401000), Thread(608, in_cid_table=False)), in_process_list=False
    )
    found = audited(kernel, tmp_path, (Thread(8),), others=(ghost,))
    assert found.codes(604) == {"hidden-process": "high"}
    assert found.views(604) == "cid+list"
    assert "ghost.exe (600)" in found.explanation(604, "hidden-process")
    assert "hidden-process" in found.codes(608)


@KERNELS
def test_nothing_is_hidden_where_a_view_is_missing(kernel: str, tmp_path: Path) -> None:
    """Without a CID table that could be read, no thread is said to be missing from it."""
    found = audited(kernel, tmp_path, (Thread(8), Thread(36, in_cid_table=False)), changes=(_lose("PspCidTable"),))
    assert found.codes(8) == found.codes(36) == {}
    assert found.views(36) == "list"


@pytest.mark.parametrize("kernel", ["xp-sp3-x86", "10-19041-x64"])
def test_broken_list_hides_nobody(kernel: str, tmp_path: Path) -> None:
    """Where a process's list does not close, a thread that it does not hold is not called hidden."""

    def break_list(image: Image) -> None:
        entry = image.address_of[8] + image.memory.offset("_ETHREAD", "ThreadListEntry")
        image.memory.write_pointer(entry, 0)
        image.memory.write_pointer(entry + image.memory.pointer_size, 0)

    found = audited(kernel, tmp_path, (Thread(8), Thread(12, in_thread_list=False)), changes=(break_list,))
    assert found.codes(12) == {}
    assert any("does not close" in note for note in found.audit.notes)


@pytest.mark.parametrize("kernel", ["xp-sp3-x86", "10-19041-x64"])
def test_thread_created_during_acquisition_is_smear(kernel: str, tmp_path: Path) -> None:
    """A thread that began after the clock was copied may be in one view only, on a machine that was running."""
    # Far beyond every scene's clock; XP keeps three flag bits below the time.
    late = 0x1E0_0000_0000_0000 << (3 if kernel.startswith("xp") else 0)
    threads = (Thread(8), Thread(12, in_thread_list=False))
    running = audited(kernel, tmp_path, threads, changes=(_mark(12, "CreateTime", late),))
    assert running.codes(12) == {"hidden-thread": "low"}
    stopped = audited(
        kernel, tmp_path, threads, changes=(_mark(12, "CreateTime", late),), bugcheck=Bugcheck(0x6), crashing_thread=8
    )
    assert stopped.codes(12) == {"hidden-thread": "high"}
    assert "no smear" in stopped.explanation(12, "hidden-thread")


@pytest.mark.parametrize(("in_cid_table", "expected"), [(True, {"exit-bugcheck": "high"}), (False, {})])
def test_threads_that_have_ended(tmp_path: Path, in_cid_table: bool, expected: dict[str, str]) -> None:
    """What the CID table holds exists, and its lists are evidence; what only the scan finds has been given back."""
    queued = Apc("nt!IopCompleteRequest")
    ended = Thread(
        8, in_thread_list=False, in_cid_table=in_cid_table, state="Terminated", terminated=True, kernel_apcs=(queued,)
    )
    found = audited("10-19041-x64", tmp_path, (Thread(12), ended), scan=True)
    assert found.codes(8) == expected
