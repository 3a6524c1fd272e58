"""MmUnloadedDrivers: former ranges, and what points into them."""

from __future__ import annotations

from pathlib import Path

import pytest
from volatility3.plugins.windows.apcaudit.model import Backing

from apcaudit.synthetic.image import Image
from apcaudit.synthetic.scene import Apc, Thread, UnloadedDriver
from tests.views_image import audited

KERNELS = pytest.mark.parametrize("kernel", ["xp-sp3-x86", "7-sp1-x64", "10-19041-x64", "10-19041-x86"])


def _range(kernel: str) -> tuple[int, int]:
    return (0xF6801000, 0xF6809000) if "x86" in kernel else (0xFFFFF80040001000, 0xFFFFF80040009000)


@KERNELS
def test_former_range(kernel: str, tmp_path: Path) -> None:
    """A former range begins with its first byte and ends before its end; nothing but its name is made of it."""
    start, end = _range(kernel)
    found = audited(kernel, tmp_path, (Thread(8),), unloaded=(UnloadedDriver("gone.sys", start, end),))
    drivers = found.audit.kernel.drivers
    assert [drivers.backing(each) for each in (start - 1, start, end - 1, end)] == [
        Backing.NOTHING,
        Backing.UNLOADED,
        Backing.UNLOADED,
        Backing.NOTHING,
    ]
    code = drivers.code(start + 0x10)
    assert (code.text, code.module, code.former) == (f"{start + 0x10:#x}", None, "gone.sys")


@KERNELS
def test_findings_name_the_driver(kernel: str, tmp_path: Path) -> None:
    """Routines and start addresses in a former range have both codes, and the explanation says whose it was."""
    start, end = _range(kernel)
    threads = (
        Thread(8, kernel_apc_disable=-1, kernel_apcs=(Apc(start + 0x20, normal_routine=start + 0x30),)),
        Thread(12, start=start + 0x40),
    )
    found = audited(kernel, tmp_path, threads, unloaded=(UnloadedDriver("gone.sys", start, end),))
    assert found.codes(8) == {"routine-unbacked": "high", "routine-unloaded": "critical"}
    assert found.codes(12) == {"orphan-start": "high", "unloaded-start": "high"}
    assert "gone.sys" in found.explanation(12, "unloaded-start")
    apc_findings = [finding for apc in found.of[8].apcs.values() for finding in apc.findings]
    assert any("gone.sys" in each.explanation for each in apc_findings if each.code == "routine-unloaded")


@pytest.mark.parametrize("kernel", ["xp-sp3-x86", "10-19041-x64"])
def test_nonsense_is_left_out(kernel: str, tmp_path: Path) -> None:
    """Ranges that end before they begin, lie in user space or are larger than any driver are not believed."""
    start, end = _range(kernel)
    unloaded = (
        UnloadedDriver("backwards.sys", end, start),
        UnloadedDriver("user.sys", 0x10000, 0x20000),
        UnloadedDriver("huge.sys", start, start + 0x20000000 if "x86" not in kernel else 0xFFFFF000),
        UnloadedDriver("gone.sys", start, end),
    )
    found = audited(kernel, tmp_path, (Thread(8),), unloaded=unloaded)
    names = [each.name for each in found.audit.kernel.drivers.unloaded]
    assert "gone.sys" in names
    assert not {"backwards.sys", "user.sys"} & set(names)


@pytest.mark.parametrize("kernel", ["xp-sp3-x86", "10-19041-x64"])
def test_no_array(kernel: str, tmp_path: Path) -> None:
    """A kernel that has unloaded nothing yet has no array, and that is no error."""

    def forget(image: Image) -> None:
        image.memory.write_pointer(image.kernel.address("MmUnloadedDrivers"), 0)

    found = audited(kernel, tmp_path, (Thread(8),), changes=(forget,))
    assert found.audit.kernel.drivers.unloaded == ()
