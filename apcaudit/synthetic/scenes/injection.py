"""One program with a user APC that another process queued to it: the smallest machine that has a user space."""

from __future__ import annotations

from apcaudit.synthetic.scene import Apc, Process, Scene, Thread
from apcaudit.synthetic.user import Region, UserImage, UserSpace

#: Relative addresses are ours.
_NTDLL = UserImage(
    "ntdll.dll", exports={"LdrInitializeThunk": 0x1100, "NtContinue": 0x1200, "RtlUserThreadStart": 0x1300}
)


def scene(kernel: str = "10-19041-x64") -> Scene:
    """Declare the scene for a kernel by name or symbol file."""
    return Scene(
        name="injection",
        description="a user APC to private memory of a program that waits alertably",
        kernel=kernel,
        processes=(
            Process(
                "notepad.exe",
                1500,
                (
                    Thread(
                        1504,
                        start="notepad+0x1000",
                        wait_reason="DelayExecution",
                        alertable=True,
                        user_apcs=(
                            # NtQueueApcThread of another process, as every injector calls it.
                            Apc(
                                "nt!IopDeallocateApc|nt!PspUserApcKernelRoutine",
                                normal_routine="memory:implant",
                                pool_tag=b"PsAp",
                                label="injected",
                            ),
                        ),
                    ),
                ),
                space=UserSpace(
                    images=(_NTDLL,),
                    regions=(Region("implant", content={0: bytes.fromhex("fc4883e4f0e8c8000000")}),),
                ),
            ),
        ),
    )
