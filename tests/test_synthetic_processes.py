"""Stock Volatility reads what synthetic processes have beside their threads: image names, VADs, PEBs, handle tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from apcaudit.synthetic.build import build
from apcaudit.synthetic.kernels import load_kernel
from apcaudit.synthetic.scene import Process, Scene, Thread
from tests.volatility import CACHE, construct, rows


@pytest.fixture(scope="module", params=["7-sp1-x64", "8.1-x64", "11-26100-x64", "xp-sp3-x86"])
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes of one name, each with a thread."""
    processes = tuple(
        Process("svchost.exe", pid, (Thread(pid + 4, start=0x401000, wait_reason="UserRequest"),)) for pid in (800, 900)
    )
    path = tmp_path_factory.mktemp("processes") / "image.dmp"
    scene = Scene("two", "two of one name", request.param, processes)
    build(scene, load_kernel(request.param)).write_dump(path)
    return path


def test_image_names(image: Path) -> None:
    """A process is audited under its image's path; System has no image."""
    found = rows(image, "windows.pstree.PsTree", cache=CACHE)
    assert {row["PID"]: row["Audit"] for row in found} == {
        4: None,
        800: "\\Device\\HarddiskVolume2\\Windows\\System32\\svchost.exe",
        900: "\\Device\\HarddiskVolume2\\Windows\\System32\\svchost.exe",
    }


def test_vads(image: Path) -> None:
    """Every process has the page of KUSER_SHARED_DATA, read-only, among its VADs."""
    found = rows(image, "windows.vadinfo.VadInfo", cache=CACHE)
    assert [(row["PID"], row["Start VPN"], row["End VPN"], row["Tag"], row["Protection"]) for row in found] == [
        (pid, 0x7FFE0000, 0x7FFE0FFF, "VadS", "PAGE_READONLY") for pid in (4, 800, 900)
    ]


def test_processes_of_one_name_keep_apart(image: Path) -> None:
    """Each process has its own threads, PEB and handle table, whatever its name; System has no PEB."""
    plugin = construct(image, "windows.pslist.PsList", cache=CACHE)
    found = {
        int(process.UniqueProcessId): process
        for process in plugin.list_processes(plugin.context, plugin.config["kernel"])
    }
    threads = {
        pid: [
            int(thread.Cid.UniqueThread)
            for thread in process.ThreadListHead.to_list(
                f"{process.vol.type_name.split('!')[0]}!_ETHREAD", "ThreadListEntry"
            )
        ]
        for pid, process in found.items()
    }
    assert threads == {4: [], 800: [804], 900: [904]}
    assert [bool(int(process.Peb)) for _, process in sorted(found.items())] == [False, True, True]
    assert len({int(process.Peb) for process in found.values()}) == 3
    assert len({int(process.ObjectTable) for process in found.values()} - {0}) == 3
