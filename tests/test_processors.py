"""Processors: CurrentThread, IdleThread and the IRQL that a crash saved."""

from __future__ import annotations

from pathlib import Path

import pytest
from volatility3.plugins.windows.apcaudit.threads.kernel_views import read_processors

from apcaudit.synthetic.image import Image
from apcaudit.synthetic.scene import Apc, Bugcheck, Thread
from tests.views_image import audited

KERNELS = pytest.mark.parametrize("kernel", ["xp-sp3-x86", "7-sp1-x64", "10-19041-x64", "10-19041-x86"])
RUNNING = Thread(8, state="Running", running_on=1, kernel_apc_pending=True, kernel_apcs=(Apc(),))


@KERNELS
def test_every_processor_is_read_once(kernel: str, tmp_path: Path) -> None:
    """KiProcessorBlock gives each _KPRCB under its number, what runs there, and the idle thread."""
    found = audited(kernel, tmp_path, (RUNNING, Thread(12)), processors=3)
    addresses = found.image.address_of
    processors = read_processors(found.audit.kernel, (addresses["kprcb:1"],))
    assert [(each.number, each.address) for each in processors] == [
        (number, addresses[f"kprcb:{number}"]) for number in range(3)
    ]
    assert [each.current == each.idle for each in processors] == [True, False, True]
    assert processors[1].current == addresses[8]


@KERNELS
def test_irql_of_a_running_thread_in_a_crash(kernel: str, tmp_path: Path) -> None:
    """What the crash saved is the running thread's IRQL; XP saves none, so there it is unknown."""
    stopped = Bugcheck(0xA, (0, 0, 0, 0))
    found = audited(kernel, tmp_path, (RUNNING,), processors=2, bugcheck=stopped, crashing_thread=8, crash_irql=1)
    assert found.of[8].thread.irql == (None if kernel.startswith("xp") else 1)
    assert found.of[8].thread.processor == 1
    assert ("undelivered" in found.codes(8)) is not kernel.startswith("xp")


@KERNELS
def test_irql_is_unknown_on_a_running_machine(kernel: str, tmp_path: Path) -> None:
    """Without a bugcheck, DebuggerSavedIRQL is a leftover."""
    found = audited(kernel, tmp_path, (RUNNING,), processors=2)
    assert found.of[8].thread.irql is None
    assert found.codes(8) == {}


@KERNELS
def test_an_entry_that_leads_to_no_processor(kernel: str, tmp_path: Path) -> None:
    """Where an entry of KiProcessorBlock leads nowhere the other processors are read, and a note tells of it."""

    def lose(image: Image) -> None:
        image.memory.write_pointer(image.kernel.address("KiProcessorBlock"), image.address_of["process:System"])

    found = audited(kernel, tmp_path, (RUNNING,), processors=3, changes=(lose,))
    assert [each.number for each in read_processors(found.audit.kernel)] == [1, 2]
    assert found.of[8].thread.processor == 1
    assert any("no _KPRCB for 1 of 3 processors" in note for note in found.audit.notes)


@KERNELS
def test_a_processor_block_that_is_gone(kernel: str, tmp_path: Path) -> None:
    """Where no processor can be read, the idle thread that only they hold is missing, and a note says so."""

    def lose(image: Image) -> None:
        image.memory.write_pointer(image.kernel.address("KiProcessorBlock"), 0)

    found = audited(kernel, tmp_path, (Thread(8),), changes=(lose,))
    assert set(found.of) == {8}
    assert any("no _KPRCB for 1 of 1 processors" in note for note in found.audit.notes)


@KERNELS
@pytest.mark.parametrize("count", [0, 1, 0xFFFFFFFF], ids=hex)
def test_a_number_of_processors_that_lies(kernel: str, count: int, tmp_path: Path) -> None:
    """A number of processors that is too low or absurd hides none, and none is missing by an absurd one."""

    def lie(image: Image) -> None:
        image.memory.write_scalar(image.kernel.address("KeNumberProcessors"), 4, count)

    found = audited(kernel, tmp_path, (RUNNING,), processors=3, changes=(lie,))
    assert [each.number for each in read_processors(found.audit.kernel)] == [0, 1, 2]
    assert found.codes(8) == {}
    assert [note for note in found.audit.notes if "processors" in note and count != 0xFFFFFFFF] == []


def test_what_follows_a_byte_is_no_part_of_it(tmp_path: Path) -> None:
    """XP's KeNumberProcessors is one byte, and what lies behind it does not count."""

    def write(image: Image) -> None:
        image.memory.write_scalar(image.kernel.address("KeNumberProcessors"), 4, 0x01010103)

    found = audited("xp-sp3-x86", tmp_path, (RUNNING,), processors=3, changes=(write,))
    assert found.audit.notes == ()
