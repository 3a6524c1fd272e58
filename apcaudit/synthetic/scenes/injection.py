"""Programs with user APCs that another process queued to them: one, or as many as a measurement needs."""

from __future__ import annotations

from apcaudit.synthetic import libraries
from apcaudit.synthetic.kernels import Kernel, load_kernel
from apcaudit.synthetic.libraries import DISPATCHER
from apcaudit.synthetic.scene import Apc, Process, Scene, Thread
from apcaudit.synthetic.situations.owners import SHELLCODE
from apcaudit.synthetic.user import Region, UserSpace

_FIRST_PID = 1500


def scene(kernel: str = "10-19041-x64", processes: int = 1, apcs: int = 1, vads: int = 0) -> Scene:
    """Declare the scene for a kernel by name or symbol file.

    Each process has so many threads with a user APC each, and so many VADs that nothing leads to. The first APC leads
    to private memory, the others hand on a routine of the program's own.
    """
    loaded = load_kernel(kernel)
    step = 4 * (apcs + 1)
    return Scene(
        name="injection",
        description=f"user APCs to private memory of {processes} programs that wait alertably",
        kernel=kernel,
        processes=tuple(_program(loaded, _FIRST_PID + step * each, apcs, vads) for each in range(processes)),
    )


def _program(kernel: Kernel, pid: int, apcs: int, vads: int) -> Process:
    threads = tuple(
        Thread(
            pid + 4 * number,
            start="notepad+0x1000",
            wait_reason="DelayExecution",
            alertable=True,
            user_apcs=(_apc(f"memory:implant{pid}") if number == 1 else _apc(DISPATCHER, "notepad+0x1200"),),
        )
        for number in range(1, apcs + 1)
    )
    # Memory that was reserved and never touched.
    others = (Region(f"other{pid}_{number}", state="demand-zero") for number in range(vads))
    implant = Region(f"implant{pid}", content={0: SHELLCODE})
    return Process("notepad.exe", pid, threads, space=UserSpace(libraries.system(kernel), (implant, *others)))


def _apc(routine: str, context: str | int = 0) -> Apc:
    """Declare an APC of NtQueueApcThread, as every injector calls it."""
    return Apc("nt!IopDeallocateApc", normal_routine=routine, normal_context=context, pool_tag=b"PsAp")
