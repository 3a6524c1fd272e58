"""MemProcFS, a reader that nobody here wrote, sees in synthetic machines what was planted.

It works without symbols: it knows the offsets of _EPROCESS by searching for what must be there, and those of _ETHREAD
by the build number. So it checks the layouts, too. What it is not asked here: user modules (no process has any), the
threads of 32-bit machines (it has no offsets for them), and our own 8.1 kernel. There it looks for _EPROCESS.ExitStatus
right in front of VadRoot, and gives up, since that build, later than those it was made for, has it at the end; the 8.1
layouts from outside of the repository, which are earlier, it reads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from apcaudit.synthetic.build import build
from apcaudit.synthetic.image import Image
from apcaudit.synthetic.kernels import OWN, load_kernel
from apcaudit.synthetic.scene import Apc, Process, Scene, Thread
from apcaudit.synthetic.scenes.common import DISK, FLTMGR, HAL, NTFS

try:
    import memprocfs
except (ImportError, OSError) as error:
    pytest.skip(
        f"MemProcFS is not here ({error}): pip install memprocfs, apt-get install libusb-1.0-0 libfuse2",
        allow_module_level=True,
    )

ROOT = Path(__file__).resolve().parent.parent
LAYOUTS = ROOT.parent / "shared" / "layouts"

#: It reads no less than the 16 MB that it looks for page tables in.
LEAST = 0x1000000

_OWN = [name for name in sorted(OWN) if load_kernel(name).is_64bit and name != "8.1-x64"]
_SHARED = sorted(path.name for path in LAYOUTS.glob("*-x64.json.xz")) or ["layouts"]

#: It finds System's neighbour by its name, and takes no machine of ten processes or fewer for Windows.
_TREE = (
    ("Registry", 92, 4),
    ("smss.exe", 344, 4),
    ("csrss.exe", 448, 436),
    ("wininit.exe", 524, 436),
    ("csrss.exe", 532, 516),
    ("winlogon.exe", 624, 516),
    ("services.exe", 668, 524),
    ("lsass.exe", 676, 524),
    ("svchost.exe", 800, 668),
    ("svchost.exe", 864, 668),
    ("explorer.exe", 2040, 2000),
)

#: _KTHREAD.State: KTHREAD_STATE (Windows Internals): Ready, Running, Waiting.
_STATES = {"Ready": 1, "Running": 2, "Waiting": 5}


def _scene(kernel: str) -> Scene:
    system = (
        Thread(8, start="nt!Phase1Initialization", wait_reason="WrFreePage"),
        Thread(12, kernel_apc_pending=True, kernel_apcs=(Apc(normal_routine="fltMgr!FltSendMessage"),)),
        Thread(16, start="nt!ExpWorkerThread", attached_to="explorer.exe", state="Ready"),
        Thread(20, start="fltMgr!FltSendMessage+0x90", wait_reason="Executive", wait_irql=1),
        Thread(24, start="nt!KeBalanceSetManager", in_thread_list=False),
    )
    # Registry has no user image: its threads, if any, are the kernel's.
    processes = tuple(
        Process(name, pid, (Thread(pid + 4, start=0x401000 + pid, wait_reason="UserRequest"),), parent=parent)
        for name, pid, parent in _TREE
    )
    running = Thread(5000, start=0x403800, state="Running", running_on=0)
    last = processes[-1]
    processes = (*processes[:-1], Process(last.name, last.pid, (*last.threads, running), parent=last.parent))
    return Scene(
        "tree",
        "the processes that every Windows has",
        kernel,
        (Process("System", 4, system, parent=0), *processes),
        (HAL, FLTMGR, NTFS, DISK),
    )


@contextmanager
def _opened(image: Image, path: Path, form: str = "raw") -> Iterator[Any]:
    """Write an image and open it in MemProcFS."""
    if form == "dump":
        image.write_dump(path)
    else:
        image.write_raw(path)
    if path.stat().st_size < LEAST:
        os.truncate(path, LEAST)
    vmm = memprocfs.Vmm(["-device", str(path), "-waitinitialize", "-disable-symbolserver", "-disable-python"])
    try:
        yield vmm
    finally:
        vmm.close()


def _planted_threads(image: Image, process: Process) -> set[tuple[int, int, int, int, int]]:
    """Give a process's listed threads: TID, _ETHREAD, StartAddress, StackBase, State."""
    return {
        (
            thread.tid,
            image.address_of[thread.tid],
            image.resolve(thread.start),
            image.memory.read(image.address_of[thread.tid], "_ETHREAD", "Tcb.StackBase"),
            _STATES[thread.state],
        )
        for thread in process.threads
        if thread.in_thread_list
    }


def _check(image: Image, vmm: Any) -> None:
    assert vmm.kernel.build == image.kernel.version[2]
    found = {process.pid: process for process in vmm.process_list()}
    assert {(pid, each.name, each.ppid, each.eprocess) for pid, each in found.items()} == {
        (each.pid, each.name, each.parent, image.address_of[f"process:{each.pid}"]) for each in image.scene.processes
    }
    for process in image.scene.processes:
        keys = ("tid", "va-ethread", "va-start", "va-stackbase-kernel", "state")
        threads = {tuple(thread[key] for key in keys) for thread in found[process.pid].maps.thread()}
        assert threads == _planted_threads(image, process), process.name
    assert {(module.name, module.base, module.image_size) for module in found[4].module_list()} == {
        ("ntoskrnl.exe", image.kernel.base, image.kernel.image_size),
        *((each.name, image.address_of[f"driver:{each.name}"], each.size) for each in image.scene.drivers),
    }


@pytest.mark.parametrize("form", ["raw", "dump"])
@pytest.mark.parametrize("name", _OWN)
def test_memprocfs_sees_what_was_planted(name: str, form: str, tmp_path: Path) -> None:
    """It names the processes, the threads on their lists, where they start, and the kernel's modules."""
    image = build(_scene(name), load_kernel(name))
    with _opened(image, tmp_path / "image", form) as vmm:
        _check(image, vmm)


@pytest.mark.parametrize("name", _SHARED)
def test_memprocfs_sees_it_on_every_layout(name: str, tmp_path: Path) -> None:
    """The same for every x64 layout from Vista on: what the scenes fill in is where Windows has it."""
    path = LAYOUTS / name
    if not path.is_file():
        pytest.skip(f"{LAYOUTS} is missing: the layouts of other builds")
    image = build(_scene(str(path)), load_kernel(path))
    with _opened(image, tmp_path / "image") as vmm:
        _check(image, vmm)


def test_memprocfs_needs_no_low_stub(tmp_path: Path) -> None:
    """The kernel's page tables pass for those of Windows by themselves, as where a machine has no low stub left."""
    image = build(_scene("10-19041-x64"), load_kernel("10-19041-x64"))
    image.memory.space.fixed.clear()
    with _opened(image, tmp_path / "image", "dump") as vmm:
        _check(image, vmm)
