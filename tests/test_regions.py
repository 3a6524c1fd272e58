"""In what memory a payload lies that no module holds: the regions of kernel space, by address."""

from __future__ import annotations

from pathlib import Path

import pytest
from volatility3.plugins.windows.apcaudit.image.page_tables import HAL_HEAP, PAGE_TABLES, SHARED_PAGE, Regions

from apcaudit.synthetic.scene import Apc, Driver, Process, Thread
from tests.views_image import audited

KERNELS = pytest.mark.parametrize("kernel", ["xp-sp3-x86", "7-sp1-x64", "10-19041-x64", "10-19041-x86"])
RUNNING = {"state": "Running", "kernel_apc_pending": True}


@KERNELS
def test_regions_by_address(kernel: str, tmp_path: Path) -> None:
    """The shared page, the HAL's heap and the page tables are known by address; pool and modules are neither."""
    found = audited(kernel, tmp_path, (Thread(8),))
    memory = found.audit.kernel.memory
    regions = Regions(memory)
    shared, hal = (0xFFFFF78000000000, 0xFFFFFFFFFFD00010) if memory.bits == 64 else (0xFFDF0000, 0xFFD00010)
    assert [regions.find(address) for address in (shared, shared + 0xFFF, hal)] == [SHARED_PAGE, SHARED_PAGE, HAL_HEAP]
    assert regions.find(found.image.address_of[8]) is None
    assert regions.find(found.image.kernel.base) is None
    if memory.bits == 32:
        assert [regions.find(address) for address in (0xBFFFFFFC, 0xC0000000)] == [None, PAGE_TABLES]


@pytest.mark.parametrize("kernel", ["7-sp1-x64", "10-19041-x64"])
def test_page_tables_are_found_where_they_map_themselves(kernel: str, tmp_path: Path) -> None:
    """On x64 the page tables lie where an entry of the top table leads back to it, wherever Windows put that."""
    found = audited(kernel, tmp_path, (Thread(8),))
    memory = found.audit.kernel.memory
    top = memory.read_physical(memory.paging.top, 0x1000)
    assert top is not None
    entries = [int.from_bytes(top[at : at + 8], "little") for at in range(0, 0x1000, 8)]
    (index,) = [
        at for at, entry in enumerate(entries) if entry & 1 and entry & memory.paging.frame_mask == memory.paging.top
    ]
    start = 0xFFFF000000000000 | index << 39
    assert [Regions(memory).find(address) for address in (start - 8, start, start + (1 << 39) - 8)] == [
        None,
        PAGE_TABLES,
        PAGE_TABLES,
    ]


@KERNELS
def test_a_routine_outside_of_modules_is_told_with_its_region(kernel: str, tmp_path: Path) -> None:
    """The explanation of routine-unbacked names the pool, the stack or the shared page that a routine lies in."""
    probe = audited(kernel, tmp_path, (Thread(8), Thread(12)))
    base = probe.of[12].thread.members.stack_base
    assert base
    shared = 0xFFDF0800 if probe.audit.kernel.memory.bits == 32 else 0xFFFFF78000000800
    places = {
        8: probe.image.address_of[8] + 0x40,
        16: base - 0x280,
        20: shared,
    }
    threads = (
        Thread(8, **RUNNING, running_on=0, kernel_apcs=(Apc(places[8]),)),
        Thread(12, stack_base=base),
        Thread(16, **RUNNING, running_on=1, kernel_apcs=(Apc(places[16]),)),
        Thread(20, **RUNNING, running_on=2, kernel_apcs=(Apc(places[20]),)),
    )
    found = audited(kernel, tmp_path, threads, processors=3)
    said = {
        tid: next(
            finding.explanation
            for apc in found.of[tid].apcs.values()
            for finding in apc.findings
            if finding.code == "routine-unbacked"
        )
        for tid in (8, 16, 20)
    }
    assert "(pool)" in said[8]
    assert f"(the kernel stack of thread {found.image.address_of[12]:#x})" in said[16]
    assert "(KUSER_SHARED_DATA)" in said[20]


@KERNELS
def test_nothing_is_said_of_other_memory(kernel: str, tmp_path: Path) -> None:
    """A routine in memory that nothing is known of is told without a region."""
    threads = (Thread(8, **RUNNING, running_on=0, kernel_apcs=(Apc("driver:gone.sys+0x1200"),)),)
    gone = Driver("gone.sys", listed=False, driver_object=False)
    found = audited(kernel, tmp_path, threads, drivers=(gone,), others=(Process("svc.exe", 100),))
    (finding,) = (each for apc in found.of[8].apcs.values() for each in apc.findings)
    assert "(" not in finding.explanation
