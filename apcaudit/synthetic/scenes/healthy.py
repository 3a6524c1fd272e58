"""Nothing wrong: a dozen threads as any machine has them. An audit must stay silent."""

from __future__ import annotations

from apcaudit.synthetic.scene import Process, Scene, Thread
from apcaudit.synthetic.scenes.common import DISK, FLTMGR, HAL, NTFS


def scene(kernel: str = "10-19041-x64") -> Scene:
    """Declare the scene; it fits every kernel."""
    system = Process(
        "System",
        4,
        (
            Thread(8, start="nt!Phase1Initialization", wait_reason="WrFreePage"),
            Thread(12, start="nt!ExpWorkerThread"),
            # Work items ran attached before: what the last attach left in SavedApcState is stale, not evidence.
            Thread(16, start="nt!ExpWorkerThread", stale_saved_state=True),
            Thread(20, start="nt!KeBalanceSetManager", wait_reason="Executive"),
            Thread(24, start="nt!MiModifiedPageWriter", wait_reason="WrFreePage", stale_saved_state=True),
            # Holds a resource: a critical region, nothing queued.
            Thread(28, start="nt!CcWorkerThread", wait_reason="Executive", kernel_apc_disable=-2),
            # In a fast mutex.
            Thread(32, start="fltMgr!FltSendMessage+0x90", wait_reason="Executive", wait_irql=1),
            # A worker attached to a process for a moment, at rest there.
            Thread(36, start="nt!ExpWorkerThread", attached_to="svchost.exe", state="Ready"),
        ),
        parent=0,
    )
    service = Process(
        "svchost.exe",
        800,
        (
            Thread(804, start=0x401000, wait_reason="UserRequest", alertable=True),
            Thread(808, start=0x401800, wait_reason="WrQueue"),
            # Suspended: it waits inside of its kernel APC, which has been taken off the list.
            Thread(812, start=0x402000, wait_reason="Suspended", suspend_count=1, kernel_apc_in_progress=True),
            # Gone, but a handle keeps its object.
            Thread(
                816,
                start=0x402800,
                state="Terminated",
                terminated=True,
                in_thread_list=False,
                in_cid_table=False,
                apc_queueable=False,
            ),
        ),
        parent=644,
    )
    shell = Process(
        "explorer.exe",
        2040,
        (
            Thread(2044, start=0x403000, wait_reason="WrUserRequest"),
            Thread(2048, start=0x403800, state="Running", running_on=1),
        ),
        parent=2000,
    )
    return Scene(
        "healthy",
        "a dozen ordinary threads; nothing to find",
        kernel,
        (system, service, shell),
        (HAL, FLTMGR, NTFS, DISK),
        processors=2,
    )
