"""An ordinary machine: nothing to raise on any kernel, and one implant in it that stands out."""

from __future__ import annotations

from pathlib import Path

import pytest

from apcaudit.synthetic.kernels import OWN, Kernel, load_kernel
from apcaudit.synthetic.scenes import desktop
from tests.desktop_audit import DesktopAudit, audit_desktop


@pytest.fixture(scope="module", params=OWN)
def audited(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DesktopAudit:
    """Audit the machine once a kernel."""
    return audit_desktop(load_kernel(request.param), tmp_path_factory.mktemp(request.param))


def test_size() -> None:
    """The machine has 1,500 threads in 120 processes at least."""
    processes = desktop.scene().processes
    assert len(processes) >= 120
    assert sum(len(process.threads) for process in processes) >= 1500


def test_nothing_is_raised(audited: DesktopAudit) -> None:
    """No thread has a finding at medium or above, with or without a scan of physical memory."""
    assert audited.raised() == {}


def test_the_triage_view_is_nearly_empty(audited: DesktopAudit) -> None:
    """Few threads have a finding at all: what is explained and worth seeing."""
    assert 0 < audited.with_findings() <= 16


def test_every_kernel_apc_has_its_reason(audited: DesktopAudit) -> None:
    """Of every APC on a kernel list without a finding the explanation says why it is still there."""
    assert audited.without_reason() == []


@pytest.mark.parametrize("kernel", ["xp-sp3-x86", "7-sp1-x64", "10-19041-x64", "11-26100-x64"])
def test_an_implant_stands_out(kernel: str, tmp_path: Path) -> None:
    """With one APC of a driver that hides, exactly its thread is raised, at high."""
    loaded: Kernel = load_kernel(kernel)
    audited = audit_desktop(loaded, tmp_path, implant=True)
    assert audited.raised() == {audited.implanted: {"routine-unbacked": "high"}}
