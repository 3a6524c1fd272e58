"""A KAPC on the lists of two threads, and a list that leads into another thread's: said of both, in any order."""

from __future__ import annotations

from pathlib import Path

import pytest
from volatility3.plugins.windows.apcaudit.audit import Audit, Selection

from apcaudit.synthetic.damage import head, links
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.scene import Apc, Process, Thread
from tests.situation_audit import codes_of
from tests.views_image import Audits, audited

KERNELS = pytest.mark.parametrize("kernel", ["xp-sp3-x86", "7-sp1-x64", "10-19041-x64", "10-19041-x86"])
RIGHTFUL, OTHER = 8, 12
RUNNING = {"state": "Running", "kernel_apc_pending": True}
SERVICE = Process("svc.exe", 100, (Thread(104, start=0x401000),))


def _tie(image: Image) -> None:
    """Let the other thread's empty list lead to the first KAPC of the rightful one."""
    (entry,) = links(image, RIGHTFUL)
    image.memory.write_pointer(head(image, OTHER), entry)


def _tie_to_head(image: Image) -> None:
    """Let the other thread's list lead to the head of the rightful one's."""
    image.memory.write_pointer(head(image, OTHER), head(image, RIGHTFUL))


def _audited(kernel: str, folder: Path, order: tuple[int, int], change: object = _tie) -> Audits:
    threads = {
        RIGHTFUL: Thread(RIGHTFUL, **RUNNING, running_on=0, kernel_apcs=(Apc(),)),
        OTHER: Thread(OTHER, **RUNNING, running_on=1),
    }
    return audited(kernel, folder, tuple(threads[tid] for tid in order), processors=2, changes=(change,))  # type: ignore[arg-type]


@KERNELS
@pytest.mark.parametrize("order", [(RIGHTFUL, OTHER), (OTHER, RIGHTFUL)], ids=["rightful first", "other first"])
def test_both_threads_say_so(kernel: str, order: tuple[int, int], tmp_path: Path) -> None:
    """Both threads have duplicate-apc, whichever is walked first; the other one's list is broken besides."""
    found = _audited(kernel, tmp_path, order)
    assert found.codes(RIGHTFUL) == {"duplicate-apc": "high"}
    assert found.codes(OTHER) == {"duplicate-apc": "high", "thread-mismatch": "high", "list-broken": "high"}


@KERNELS
@pytest.mark.parametrize("tid", [RIGHTFUL, OTHER])
def test_whatever_is_left_out(kernel: str, tid: int, tmp_path: Path) -> None:
    """A thread says so where --tid leaves the other one out."""
    found = _audited(kernel, tmp_path, (RIGHTFUL, OTHER))
    (alone,) = Audit(*found.source).run(Selection(tids=frozenset({tid})))
    assert codes_of(alone) == found.codes(tid)


@KERNELS
def test_another_threads_head_is_no_apc(kernel: str, tmp_path: Path) -> None:
    """A list that leads straight to another thread's head is broken, and that head has no row."""
    found = _audited(kernel, tmp_path, (OTHER, RIGHTFUL), _tie_to_head)
    assert found.codes(OTHER) == {"list-broken": "high"}
    assert [apc.address for queue in found.of[OTHER].thread.queues for apc in queue.apcs] == []
    assert found.codes(RIGHTFUL) == {}


@KERNELS
def test_the_same_audit_twice(kernel: str, tmp_path: Path) -> None:
    """A second run of one audit gives the same threads with the same findings, and the same notes."""
    found = _audited(kernel, tmp_path, (OTHER, RIGHTFUL))
    first = list(found.audit.run(Selection(clean_too=True))), found.audit.notes
    second = list(found.audit.run(Selection(clean_too=True))), found.audit.notes
    assert [each.thread.address for each in first[0]] == [each.thread.address for each in second[0]]
    assert [codes_of(each) for each in first[0]] == [codes_of(each) for each in second[0]]
    assert first[1] == second[1]
    assert first[0]
