"""A crowd of ordinary threads, for measuring: mostly user threads, workers, and a few in a critical region."""

from __future__ import annotations

from apcaudit.synthetic.scene import Apc, Process, Scene, Thread
from apcaudit.synthetic.scenes.common import DISK, FLTMGR, HAL, NTFS

#: Threads a process; more than that begin another process.
_A_PROCESS = 400

#: What the first processes behind System are called, as on every Windows 10: MemProcFS knows a machine by them.
_NAMES = (
    *("Registry", "smss.exe", "csrss.exe", "wininit.exe", "csrss.exe", "winlogon.exe", "services.exe", "lsass.exe"),
    *("svchost.exe", "svchost.exe", "explorer.exe"),
)


def scene(kernel: str = "10-19041-x64", threads: int = 20000) -> Scene:
    """Declare the scene with that many threads; every hundredth has a user APC queued."""
    processes: list[Process] = []
    left, identifier = threads, 8
    while left > 0:
        count = min(left, _A_PROCESS)
        left -= count
        if not processes:
            name, pid = "System", 4
        else:
            number = len(processes)
            name, pid = _NAMES[number - 1] if number <= len(_NAMES) else f"app{number}.exe", identifier
            identifier += 4
        members = tuple(_thread(identifier + 4 * each, system=not processes) for each in range(count))
        identifier += 4 * count
        processes.append(Process(name, pid, members, parent=0 if not processes else 4))
    description = f"{threads} ordinary threads, for measuring"
    return Scene("many", description, kernel, tuple(processes), (HAL, FLTMGR, NTFS, DISK), processors=4)


def _thread(tid: int, *, system: bool) -> Thread:
    """Declare one thread, its stack paged out as most are."""
    apcs: tuple[Apc, ...] = ()
    if not system and tid % 400 == 0:
        apcs = (Apc("nt!IopDeallocateApc", normal_routine=0x77F01000),)
    return Thread(
        tid,
        "nt!ExpWorkerThread" if system else 0x401000,
        wait_reason="WrQueue" if system else "UserRequest",
        kernel_apc_disable=-1 if system and tid % 64 == 0 else 0,
        user_apcs=apcs,
        stack_pages=0,
    )
